package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// watch is a connection over which a message goes back and forth until it fails or is
// closed.
type watch struct {
	name  string
	pause time.Duration // between two messages
	conn  net.Conn
	done  chan struct{}

	mu      sync.Mutex
	count   int
	longest time.Duration // of one message and its answer
	err     error
}

// watchPause lies between two messages: often enough to see a stall of a few ms.
const watchPause = time.Millisecond

func newWatch(t *testing.T, name string, from *lab.Namespace, to netip.AddrPort) *watch {
	t.Helper()
	return newWatchEvery(t, watchPause, name, from, to)
}

func newWatchEvery(t *testing.T, pause time.Duration, name string, from *lab.Namespace, to netip.AddrPort) *watch {
	t.Helper()
	conn, err := dial(from, "tcp", netip.AddrPort{}, to)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	w := &watch{name: name, pause: pause, conn: conn, done: make(chan struct{})}
	t.Cleanup(func() { conn.Close(); <-w.done })
	go w.run()
	return w
}

func (w *watch) run() {
	defer close(w.done)
	tick := time.NewTicker(w.pause)
	defer tick.Stop()
	sent, got := make([]byte, 64), make([]byte, 64)
	for n := 0; ; n++ {
		<-tick.C
		copy(sent, fmt.Sprintf("%s %d", w.name, n))
		began := time.Now()
		_, err := w.conn.Write(sent)
		if err == nil {
			_, err = io.ReadFull(w.conn, got)
		}
		if err == nil && !bytes.Equal(sent, got) {
			err = fmt.Errorf("sent %q, got %q", sent, got)
		}
		took := time.Since(began)
		w.mu.Lock()
		w.count++
		w.longest = max(w.longest, took)
		w.err = err
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// lap waits until messages went through that were sent after it was called, and returns
// the longest time that one of them took since the last lap.
func (w *watch) lap(ctx context.Context) (time.Duration, error) {
	const enough = 5 // the first may have been under way
	want := 0
	for {
		w.mu.Lock()
		count, longest, err := w.count, w.longest, w.err
		if want == 0 {
			want = count + enough
		}
		if err != nil || count >= want {
			w.count, w.longest = 0, 0
			w.mu.Unlock()
			return longest, err
		}
		w.mu.Unlock()
		select {
		case <-time.After(w.pause):
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: nothing went through: %w", w.name, context.Cause(ctx))
		}
	}
}

// laps is a lap of each: all connections live.
func laps(ctx context.Context, t *testing.T, watches []*watch, when string) {
	t.Helper()
	for _, w := range watches {
		longest, err := w.lap(ctx)
		if err != nil {
			t.Fatalf("%s: %s: %v", when, w.name, err)
		}
		t.Logf("%s: %s: longest round trip %v", when, w.name, longest)
	}
}

// echo makes a pod send back what it gets.
func echo(t *testing.T, p *lab.Pod, port uint16) {
	t.Helper()
	listenTCP(t, p.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), port), func(c net.Conn) { io.Copy(c, c) })
}

const echoService = `
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 70, targetPort: 7}]
`

// TestConnectionsOutliveTheDataplane replaces node a's dataplane by a kill or as
// planned, again and again: the same connections go on, between pods and through
// services, from the node and to it, and no pod sees its interface change.
func TestConnectionsOutliveTheDataplane(t *testing.T) {
	c := newCluster(t)
	near, far := c.pod(0, "near", map[string]string{"app": "echo"}), c.pod(1, "far", map[string]string{"app": "echo"})
	for _, p := range []*lab.Pod{near, far} {
		echo(t, p, 7)
	}
	c.apply(echoService)
	vip := c.service("echo")
	c.eventually("the service's endpoints are known on both nodes", func() error {
		for _, p := range []*lab.Pod{c.a1, c.b1} {
			if _, err := ask(p.Namespace, "tcp", netip.AddrPortFrom(vip.ip(4), 70), "hello"); err != nil {
				return err
			}
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var watches []*watch
	for _, family := range []int{4, 6} {
		for _, w := range []struct {
			name string
			from *lab.Pod
			to   netip.AddrPort
		}{
			{"same node", c.a1, netip.AddrPortFrom(near.IP(family), 7)},
			{"to another node", c.a1, netip.AddrPortFrom(far.IP(family), 7)},
			{"from another node", c.b1, netip.AddrPortFrom(near.IP(family), 7)},
			{"a service", c.a1, netip.AddrPortFrom(vip.ip(family), 70)},
			{"a service again", c.a2, netip.AddrPortFrom(vip.ip(family), 70)},
			{"a service from another node", c.b1, netip.AddrPortFrom(vip.ip(family), 70)},
		} {
			watches = append(watches, newWatch(t, fmt.Sprintf("%s, IPv%d", w.name, family), w.from.Namespace, w.to))
		}
	}
	monitor, err := c.a1.Start(lab.Command{Name: "monitor", Path: "ip", Args: []string{"-o", "monitor", "link", "address", "route"}})
	if err != nil {
		t.Fatal(err)
	}
	laps(ctx, t, watches, "before")
	for round := range 6 {
		when, replace := "killed", func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }
		if round%2 == 1 {
			when, replace = "planned", func(int) error {
				_, err := c.nodes[0].Vswitch(ctx, "", "upgrade")
				return err
			}
		}
		pid, err := c.nodes[0].Dataplane()
		if err != nil {
			t.Fatal(err)
		}
		if err := replace(pid); err != nil {
			t.Fatal(err)
		}
		c.eventually("another dataplane", func() error {
			p, err := c.nodes[0].Dataplane()
			if err == nil && p == pid {
				err = fmt.Errorf("still process %d", pid)
			}
			if err != nil {
				return err
			}
			_, err = c.nodes[0].Vswitch(ctx, "", "version")
			return err
		})
		laps(ctx, t, watches, fmt.Sprintf("round %d, %s", round+1, when))
	}
	if err := monitor.Stop(); err != nil {
		t.Fatal(err)
	}
	if said := monitor.Log(); said != "" {
		t.Errorf("a pod saw its interface change:\n%s", said)
	}
}
