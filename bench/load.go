package bench

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// Load is what runs between client and server, or in place of them.
type Load struct {
	// Kind is one of loadKinds.
	Kind string `json:"kind"`
	// Streams in parallel: connections of tcp, flows of udp-rate; 0: 1.
	Streams int `json:"streams,omitempty"`
	// SizeBytes of a message's payload, where the kind has messages; 0: the kind's.
	SizeBytes int `json:"size,omitempty"`
	// USO has udp-bulk write up to 64 KiB at once, which the kernel, or whoever is
	// behind it, cuts into messages of SizeBytes; the receiver takes them joined.
	USO bool `json:"uso,omitempty"`
	// Pin keeps udp-rtt's client and server on one core. Waking an idle core costs
	// tens of microseconds on a virtual machine, and where the scheduler puts two
	// programs decides whether a round trip holds two of that.
	Pin bool `json:"pin,omitempty"`
	// Event that steady traffic goes through: one of events.
	Event string `json:"event,omitempty"`
	// Times that there is the event, or a pod attached, in one measurement; 0: once.
	Times int `json:"times,omitempty"`
	// Benchmark of the system's own package, as `go test -bench` names it less
	// "Benchmark"; Against is the baseline's, where there is one.
	Benchmark string `json:"benchmark,omitempty"`
	Against   string `json:"against,omitempty"`
}

// measurement is what one run of a load yields.
type measurement struct {
	figures map[string]float64 // by metric, in its unit
	bytes   uint64             // moved, for throughput
	detail  any                // more of what the program said, for the JSON result
}

// metric is one figure of a load.
type metric struct {
	name, unit     string
	higherIsBetter bool
}

type loadKind struct {
	metrics []metric
	// topologies are where alone the load can run; empty: wherever there are endpoints.
	topologies []Topology
	// Which of Load's fields mean something.
	streams, sizes, uso, pin, benchmark, events, times bool
	measure                                            func(ctx context.Context, l *Load, n *network, d time.Duration, self string) (measurement, error)
}

var (
	roundTripMetrics = []metric{{"p50", "us", false}, {"p90", "us", false}, {"p99", "us", false}, {"p99.9", "us", false}}
	loadKinds        map[string]loadKind
)

func init() { // refers to itself by way of the functions
	loadKinds = map[string]loadKind{
		"tcp":         {metrics: []metric{{"throughput", "Gb/s", true}}, streams: true, measure: iperf3},
		"udp-rtt":     {metrics: roundTripMetrics, sizes: true, pin: true, measure: sockperf},
		"tcp-rtt":     {metrics: roundTripMetrics, sizes: true, measure: roundTrips},
		"udp-rate":    {metrics: []metric{{"rate", "kpkt/s", true}}, streams: true, sizes: true, measure: flood},
		"udp-bulk":    {metrics: []metric{{"throughput", "Gb/s", true}}, sizes: true, uso: true, measure: flood},
		"connections": {metrics: []metric{{"rate", "conn/s", true}, {"p50", "us", false}, {"p99", "us", false}}, streams: true, measure: connections},
		"restart": {metrics: []metric{{"stall-p99", "ms", false}, {"kept", "% of connections", true}, {"delivered", "% of datagrams", true}},
			events: true, times: true, measure: restart},
		"idle": {metrics: []metric{{"cpu", "% of a core", false}, {"memory", "MB", false}, {"store-cpu", "% of a core", false},
			{"store-memory", "MB", false}}, topologies: []Topology{Idle}, measure: idle},
		"sync":   {metrics: syncMetrics, topologies: []Topology{Kubernetes, Simulated}, measure: syncOnce},
		"attach": {metrics: []metric{{"p50", "ms", false}, {"p99", "ms", false}, {"all", "s", false}}, topologies: []Topology{Attach}, streams: true, times: true, measure: attach},
		// Its metrics are the units that the benchmark reports.
		"benchmark": {metrics: []metric{{"Mlookups/s", "Mlookups/s", true}}, topologies: []Topology{InMemory}, benchmark: true, measure: benchmark},
	}
}

// metric finds one of the load's metrics.
func (l *Load) metric(name string) (metric, error) {
	if loadKinds[l.Kind].benchmark && name != "" {
		return metric{name, name, strings.HasSuffix(name, "/s")}, nil
	}
	var names []string
	for _, m := range loadKinds[l.Kind].metrics {
		if m.name == name {
			return m, nil
		}
		names = append(names, m.name)
	}
	return metric{}, fmt.Errorf("load %s has no metric %q, but %s", l.Kind, name, strings.Join(names, ", "))
}

// ofBaseline is the load as the baseline gets it.
func (l *Load) ofBaseline() Load {
	b := *l
	if l.Against != "" {
		b.Benchmark = l.Against
	}
	return b
}

func (l *Load) validate(t Topology) error {
	k, ok := loadKinds[l.Kind]
	special := t == Idle || t == Attach || t == InMemory || t == Simulated
	switch {
	case !ok:
		return fmt.Errorf("load kind %q is none of %s", l.Kind, strings.Join(slices.Sorted(maps.Keys(loadKinds)), ", "))
	case len(k.topologies) > 0 && !slices.Contains(k.topologies, t), len(k.topologies) == 0 && special:
		return fmt.Errorf("load %s can't run in topology %s", l.Kind, t)
	case l.Streams < 0 || l.Streams > 128:
		return fmt.Errorf("%d streams are not within 1..128", l.Streams)
	case l.Streams > 1 && !k.streams:
		return fmt.Errorf("load %s has one stream", l.Kind)
	case l.SizeBytes < 0 || l.SizeBytes > 65507:
		return fmt.Errorf("size %d is not within 1..65507", l.SizeBytes)
	case l.SizeBytes > 0 && !k.sizes:
		return fmt.Errorf("load %s has no message size", l.Kind)
	case l.USO && !k.uso:
		return fmt.Errorf("load %s has no USO writes", l.Kind)
	case l.Pin && !k.pin:
		return fmt.Errorf("load %s can't be pinned", l.Kind)
	case k.events && events[l.Event] == nil:
		return fmt.Errorf("event %q is none of %s", l.Event, strings.Join(slices.Sorted(maps.Keys(events)), ", "))
	case !k.events && l.Event != "":
		return fmt.Errorf("load %s has no event", l.Kind)
	case l.Times < 0 || l.Times > 200 || l.Times > 0 && !k.times:
		return fmt.Errorf("%d times are not within 1..200 events or pods", l.Times)
	case (l.Benchmark != "") != k.benchmark, l.Against != "" && !k.benchmark:
		return fmt.Errorf("load %s: a benchmark is for the load of that name, which needs one", l.Kind)
	}
	return nil
}

func (l *Load) measure(ctx context.Context, n *network, d time.Duration, self string) (measurement, error) {
	return loadKinds[l.Kind].measure(ctx, l, n, d, self)
}

// loadPort is where servers listen; every run starts its own.
const loadPort = 5201

// withServer runs f while a server process runs in the server's namespace. How
// the server ends is of no interest: what counts is what the client saw.
func withServer(ctx context.Context, e endpoints, c lab.Command, ready *regexp.Regexp, f func(*lab.Process) (measurement, error)) (measurement, error) {
	p, err := e.server.Start(c)
	if err != nil {
		return measurement{}, err
	}
	defer p.Stop()
	if _, err := p.WaitLog(ctx, ready); err != nil {
		return measurement{}, err
	}
	m, err := f(p)
	if err != nil {
		if said := p.Tail(5); said != "" {
			err = fmt.Errorf("%w; the server said last: %s", err, said)
		}
	}
	return m, err
}

var serveReady = regexp.MustCompile("^" + traffic.ReadyLine)

// wholeSeconds is d as iperf3 and sockperf take it: at least one.
func wholeSeconds(d time.Duration) string {
	return fmt.Sprintf("%.0f", max(d.Seconds(), 1))
}
