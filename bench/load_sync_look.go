package bench

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/lab/cluster"
	"vswitch/internal/lab/crowd"
)

// What is looked at in a node of a large cluster: its processes, its metrics, and
// whether it sends packets where the objects say.

const servicePort = crowd.ServicePort

// daemon is a daemon's processes: its keeper and its dataplane.
type daemon []int

func (k *kubernetes) processes() (daemon, error) {
	dataplane, err := k.node.Dataplane()
	return daemon{k.node.Daemon().Pid(), dataplane}, err
}

// runTime is the CPU time used so far.
func (d daemon) runTime() (sum time.Duration, err error) {
	for _, pid := range d {
		t, err := runTime(pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// memory is what was resident at most, and what is now, in bytes.
func (d daemon) memory() (peak, now uint64, err error) {
	for _, pid := range d {
		p, err := statusBytes(pid, "VmHWM")
		if err != nil {
			return 0, 0, err
		}
		r, err := statusBytes(pid, "VmRSS")
		if err != nil {
			return 0, 0, err
		}
		peak, now = peak+p, now+r
	}
	return peak, now, nil
}

// metrics are those without buckets, by name and labels as they are written.
func (k *kubernetes) metrics(ctx context.Context) (map[string]float64, error) {
	transport := &http.Transport{DialContext: cluster.DialFrom(k.node.Namespace), DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	all := map[string]float64{}
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			all[name] = v
		}
	}
	return all, lines.Err()
}

// looked is what the daemon would do with a packet.
type looked struct {
	verdict, node string
	to            netip.AddrPort // where a service's packet goes; zero: its own destination
}

// becomes is how a trace says what a service made of the destination (internal/node).
const becomes = "the destination becomes "

// trace asks what would become of a packet of the client pod.
func (k *kubernetes) trace(ctx context.Context, d *apiv1.Client, to netip.Addr, port uint16) (looked, error) {
	r, err := d.Trace(ctx, &apiv1.TraceRequest{Pod: "default/" + clientPod, To: to.String(), Port: uint32(port), Protocol: "tcp"})
	if err != nil {
		return looked{}, err
	}
	l := looked{verdict: r.Outcome.Verdict, node: r.Outcome.Node}
	for _, s := range r.Steps {
		if _, text, ok := strings.Cut(s.Text, becomes); ok && s.Stage == "rewrite" {
			text, _, _ = strings.Cut(text, ";")
			if l.to, err = netip.ParseAddrPort(text); err != nil {
				return l, err
			}
		}
	}
	return l, nil
}

// expected says what is wrong with where a service's packet goes.
func (k *kubernetes) expected(service int, l looked) error {
	for _, pod := range k.crowd.Endpoints(service, k.changes[service]) {
		if l.to == netip.AddrPortFrom(k.crowd.PodAddr(pod), crowd.TargetPort) && l.verdict == "delivered" && l.node == k.crowd.NodeName(k.crowd.NodeOf(pod)) {
			return nil
		}
	}
	return fmt.Errorf("service %d (%v): %+v", service, k.crowd.VIP(service), l)
}

const (
	// sampledLookups of pods, and as many of services, are traced.
	sampledLookups = 500
	// listedEndpoints are as many as the daemon lists in one answer.
	listedEndpoints = 200_000
)

// lookUp compares what the node knows with what was written: where packets of a sample
// go, the route to every node, and the endpoints of every service unless those are more
// than it lists.
func (k *kubernetes) lookUp(ctx context.Context) (asked int, wrong []string, err error) {
	daemon, err := apiv1.Dial(ctx, k.node.Socket())
	if err != nil {
		return 0, nil, err
	}
	defer daemon.Close()
	check := func(err error) {
		if asked++; err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	for range sampledLookups {
		pod := rand.IntN(k.crowd.Pods)
		l, err := k.trace(ctx, daemon, k.crowd.PodAddr(pod), crowd.TargetPort)
		if err != nil {
			return asked, wrong, err
		}
		if want := (looked{"delivered", k.crowd.NodeName(k.crowd.NodeOf(pod)), netip.AddrPort{}}); l != want {
			err = fmt.Errorf("pod %v: %+v, want %+v", k.crowd.PodAddr(pod), l, want)
		}
		check(err)

		service := rand.IntN(k.crowd.AllServices())
		if l, err = k.trace(ctx, daemon, k.crowd.VIP(service), servicePort); err != nil {
			return asked, wrong, err
		}
		check(k.expected(service, l))
	}
	if err := k.compareRoutes(ctx, check); err != nil || k.crowd.Services*k.crowd.Behind() > listedEndpoints {
		return asked, wrong, err
	}
	return asked, wrong, k.compareEndpoints(ctx, check)
}

// compareRoutes checks the way to every node but the real one.
func (k *kubernetes) compareRoutes(ctx context.Context, check func(error)) error {
	var rows []struct{ Destination, Kind, Via string }
	if err := k.node.Get(ctx, "routes", &rows); err != nil {
		return err
	}
	via := map[string]string{}
	for _, r := range rows {
		via[r.Destination] = r.Via
	}
	for i := 1; i < k.crowd.Nodes; i++ {
		cidr, want := k.crowd.NodeCIDR(i).String(), k.crowd.NodeName(i)
		var err error
		if has := via[cidr]; has != want {
			err = fmt.Errorf("route to %s: via %q, want %q", cidr, has, want)
		}
		check(err)
	}
	return nil
}

// compareEndpoints checks every service, and that there are no others.
func (k *kubernetes) compareEndpoints(ctx context.Context, check func(error)) error {
	var rows []struct {
		Namespace, Name string
		Endpoints       []struct {
			Addresses []string
			NodeName  string
		}
	}
	if err := k.node.Get(ctx, "endpoints", &rows); err != nil {
		return err
	}
	has := map[string][]string{}
	for _, r := range rows {
		for _, e := range r.Endpoints {
			has[r.Namespace+"/"+r.Name] = append(has[r.Namespace+"/"+r.Name], e.Addresses[0]+" "+e.NodeName)
		}
	}
	for i := range k.crowd.AllServices() {
		var want []string
		for _, pod := range k.crowd.Endpoints(i, k.changes[i]) {
			want = append(want, k.crowd.PodAddr(pod).String()+" "+k.crowd.NodeName(k.crowd.NodeOf(pod)))
		}
		namespace, name := crowd.ServiceName(i)
		got := has[namespace+"/"+name]
		slices.Sort(want)
		slices.Sort(got)
		var err error
		if !slices.Equal(got, want) {
			err = fmt.Errorf("endpoints of %s/%s: %v, want %v", namespace, name, got, want)
		}
		check(err)
	}
	return nil
}
