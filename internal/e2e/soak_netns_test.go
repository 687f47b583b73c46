package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// soakTime is how long pods come and go: two minutes in `make test`, twenty in `make
// test-long`, $VSWITCH_SOAK in `make soak`.
func soakTime(t *testing.T) time.Duration {
	if v := os.Getenv("VSWITCH_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("VSWITCH_SOAK: %v; want a duration like 12h", err)
		}
		return d
	}
	if os.Getenv("VSWITCH_TEST") == "long" {
		return 20 * time.Minute
	}
	return 2 * time.Minute
}

const (
	soakProgress = 10 * time.Second
	// soakStall is the longest that a message of a long-lived connection may take. TCP
	// waits twice as long after each loss, and two losses in a row are bad luck on a
	// machine that is busy.
	soakStall = 5 * time.Second
	// soakPods come and go on each node, so many of them at once.
	soakPods = 3
)

// soak is two nodes under load. Node by node, for half of the time each, the dataplane
// is killed again and again; that of the other node is not, so that what it loses adds up.
type soak struct {
	*cluster
	far     *lab.Pod // on the second node, behind the service
	service service
	outside *lab.Node
	rates   []string // of the steady load
	watches []*watch
	monitor *lab.Process // of what a pod sees of its interface

	mu     sync.Mutex // guards all below
	live   map[netip.Addr]string
	seen   map[int]*levels // by process
	drops  map[string]uint64
	counts struct{ pods, again, kills, upgrades, visits int }
	worst  time.Duration // of a long-lived connection
}

// TestSoak lets pods come and go each second under load, while the dataplane is
// killed or replaced at random. Connections live, nothing is dropped that should not
// be, no address is two pods', and no process grows.
func TestSoak(t *testing.T) {
	need(t, "ping")
	s := newSoak(t)
	total := soakTime(t)
	load := s.newLoad()
	end := time.Now().Add(total)
	ctx, cancel := context.WithDeadline(t.Context(), end)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() { s.killAtRandom(ctx, end, total) })
	tasks.Go(func() { s.visit(ctx) })
	for i := range s.nodes {
		tasks.Go(func() { s.churn(ctx, i) })
	}
	begin, next := time.Now(), time.Now().Add(soakProgress)
	for tick := time.NewTicker(time.Second); ctx.Err() == nil; {
		select {
		case <-tick.C:
			s.look()
		case <-ctx.Done():
			tick.Stop()
		}
		if now := time.Now(); now.After(next) {
			next = next.Add(soakProgress)
			load = s.turn(load)
			s.progress(now.Sub(begin), total)
		}
		if t.Failed() {
			cancel()
		}
	}
	tasks.Wait()
	load.end()
	s.progress(time.Since(begin), total)
	s.judge()
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{
		cluster: newCluster(t), live: map[netip.Addr]string{}, seen: map[int]*levels{}, drops: map[string]uint64{},
		// A share of what the machine can do: what is looked for is not speed.
		rates: []string{"--bits", "5e7", "--packets", "500"},
	}
	for _, p := range []*lab.Pod{s.a1, s.a2, s.b1, s.b2} {
		s.live[p.IPv4], s.live[p.IPv6] = p.Spec.Name, p.Spec.Name
	}
	s.far = s.cluster.pod(1, "far", map[string]string{"app": "far"})
	s.live[s.far.IPv4], s.live[s.far.IPv6] = "far", "far"
	serveName(t, s.far, 8080)
	for _, p := range []*lab.Pod{s.far, s.a2, s.b1} {
		echo(t, p, 7777)
	}
	s.apply(farService)
	s.service = s.cluster.service("far")
	var err error
	if s.outside, err = s.lab.Outside(); err != nil {
		t.Fatal(err)
	}
	serveName(t, &lab.Pod{Namespace: s.outside.Namespace, Spec: lab.PodSpec{Name: "outside"}}, 9090)
	s.eventually("the service answers", func() error {
		return errors.Join(s.visitOnce(0), s.visitOnce(1))
	})
	s.monitor, err = s.a1.Start(lab.Command{Name: "monitor", Path: "ip", Args: []string{"-o", "monitor", "link", "address", "route"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		for _, w := range []struct {
			name string
			from *lab.Pod
			to   netip.AddrPort
		}{
			{"same node", s.a1, netip.AddrPortFrom(s.a2.IP(family), 7777)},
			{"to another node", s.a1, netip.AddrPortFrom(s.b1.IP(family), 7777)},
			{"a service", s.a1, netip.AddrPortFrom(s.service.ip(family), 7)},
			{"a service on its own node", s.b1, netip.AddrPortFrom(s.service.ip(family), 7)},
		} {
			s.watches = append(s.watches, newWatchEvery(t, 20*time.Millisecond, fmt.Sprintf("%s, IPv%d", w.name, family), w.from.Namespace, w.to))
		}
	}
	return s
}

func (s *soak) newLoad() *steady {
	return newSteady(s.cluster, "steady", s.b2, s.a2, netip.AddrPortFrom(s.a2.IPv4, steadyPort), s.rates...)
}

// loadTurn is how long one load lasts: its witness remembers every datagram.
const loadTurn = 10 * time.Minute

// turn ends a load that has lasted and begins another.
func (s *soak) turn(load *steady) *steady {
	if time.Since(load.begun) < loadTurn {
		return load
	}
	load.end()
	return s.newLoad()
}

// churn makes a pod each second on a node, sees that it is reached, and deletes the
// oldest; at the end all.
func (s *soak) churn(ctx context.Context, node int) {
	var pods []*passing
	defer func() {
		for _, p := range pods {
			s.report(s.leave(p))
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p, err := s.enter(node, fmt.Sprintf("n%d-%d", node, i))
		if p != nil {
			pods = append(pods, p)
		}
		s.report(err)
		if len(pods) > soakPods {
			s.report(s.leave(pods[0]))
			pods = pods[1:]
		}
	}
}

// passing is a pod that comes and goes. It says its name to who connects.
type passing struct {
	*lab.Pod
	listener net.Listener
}

// enter makes a pod as a runtime does, which tries again what a node could not do at
// the moment, and sees that a pod of each node reaches it and nobody else.
func (s *soak) enter(node int, name string) (*passing, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pod, err := s.nodes[node].NewPod(lab.PodSpec{Name: name})
	if err != nil {
		return nil, err
	}
	for {
		if err = pod.Add(ctx); err == nil {
			break
		}
		if !isAgain(err) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), pod.Delete(ctx))
		}
		s.count(&s.counts.again)
		if err := pod.Del(ctx); err != nil && !isAgain(err) {
			return nil, err
		}
	}
	p := &passing{Pod: pod}
	s.count(&s.counts.pods)
	if err := s.register(pod); err != nil {
		return p, err
	}
	err = pod.Do(func() (err error) { p.listener, err = net.Listen("tcp", ":80"); return err })
	if err != nil {
		return p, err
	}
	go func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, name)
			conn.Close()
		}
	}()
	for _, from := range []*lab.Pod{s.a1, s.b1} {
		for _, family := range []int{4, 6} {
			err := soon(func() error {
				got, err := ask(from.Namespace, "tcp", netip.AddrPortFrom(pod.IP(family), 80), "")
				if err == nil && got != name {
					err = fmt.Errorf("%s answers at the address of %s", got, name)
				}
				return err
			})
			if err != nil {
				return p, fmt.Errorf("from %s to %s: %w", from.Spec.Name, name, err)
			}
		}
	}
	return p, nil
}

// leave deletes a pod. Its address may be another's from the moment DEL begins.
func (s *soak) leave(p *passing) error {
	if p.listener != nil {
		p.listener.Close()
	}
	s.mu.Lock()
	delete(s.live, p.IPv4)
	delete(s.live, p.IPv6)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := p.Del(ctx)
		if err == nil || !isAgain(err) || ctx.Err() != nil {
			return errors.Join(err, p.Namespace.Close())
		}
		s.count(&s.counts.again)
	}
}

// isAgain reports whether the plugin asked to be called again: CNI's "try again later".
func isAgain(err error) bool { return strings.Contains(err.Error(), "CNI code 11") }

// register holds a pod's addresses against those of all others.
func (s *soak) register(p *lab.Pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
		if other, ok := s.live[a]; ok || !a.IsValid() {
			return fmt.Errorf("%s got the address %v of %s", p.Spec.Name, a, other)
		}
		s.live[a] = p.Spec.Name
	}
	return nil
}

// soon tries until it succeeds, or patience ends: a dataplane may be away.
func soon(f func() error) error {
	for deadline := time.Now().Add(patience / 4); ; time.Sleep(50 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// visit uses what the netstack carries, which ends with the dataplane and is there
// again with the next: a NodePort of each node in turn, and the way out.
func (s *soak) visit(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		s.report(soon(func() error { return s.visitOnce(i % 2) }))
		s.count(&s.counts.visits)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (s *soak) visitOnce(node int) error {
	n, pod := s.nodes[node], []*lab.Pod{s.a1, s.b1}[node]
	for _, network := range []string{"tcp", "udp"} {
		at := netip.AddrPortFrom(n.Underlay4, s.service.nodePort(s.t, network))
		if got, err := ask(s.outside.Namespace, network, at, "who"); err != nil || !strings.HasPrefix(got, "far ") {
			return fmt.Errorf("NodePort of node %s by %s: %q, %v", n.Host, network, got, err)
		}
		out := netip.AddrPortFrom(s.outside.Underlay4, 9090)
		if got, err := ask(pod.Namespace, network, out, "who"); err != nil || !strings.HasPrefix(got, "outside ") {
			return fmt.Errorf("from node %s outside by %s: %q, %v", n.Host, network, got, err)
		}
	}
	return nil
}

// killAtRandom kills or replaces dataplanes, the first node's in the first half.
func (s *soak) killAtRandom(ctx context.Context, end time.Time, total time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2*time.Second + rand.N(4*time.Second)):
		}
		node := s.nodes[0]
		if time.Until(end) < total/2 {
			node = s.nodes[1]
		}
		pid, err := node.Dataplane()
		if err != nil {
			s.report(soon(func() error { _, err := node.Dataplane(); return err }))
			continue
		}
		if rand.N(4) == 0 {
			s.count(&s.counts.upgrades)
			_, err = node.Vswitch(ctx, "", "upgrade")
		} else {
			s.count(&s.counts.kills)
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && ctx.Err() == nil {
			s.report(err)
		}
		s.report(soon(func() error {
			next, err := node.Dataplane()
			if err == nil && next == pid {
				err = fmt.Errorf("node %s: still process %d", node.Host, pid)
			}
			if err == nil {
				_, err = node.Vswitch(context.Background(), "", "version")
			}
			return err
		}))
	}
}

func (s *soak) count(n *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

func (s *soak) report(err error) {
	if err != nil {
		s.t.Error(err)
	}
}

// Lines of a log at level ERROR that a killed dataplane explains.
var expectedErrors = regexp.MustCompile(`the dataplane ended; starting it again`)

var alarming = regexp.MustCompile(`panic|DATA RACE|fatal error|level=ERROR`)

// badLines are those of a log that nothing explains.
func badLines(log string) (bad []string) {
	for line := range strings.Lines(log) {
		if alarming.MatchString(line) && !expectedErrors.MatchString(line) {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	return slices.Compact(bad)
}
