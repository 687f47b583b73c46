// Package metrics shows the daemon's counters to Prometheus, under its conventions
// for names and units (docs/metrics.md lists them).
//
// It reads what other packages count for themselves, when it is asked: nothing is
// written on its behalf per frame or per connection. Only what happens rarely, an ADD
// or a change of a service, is observed into a histogram here.
package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vswitch/control"
	"vswitch/internal/dns"
	"vswitch/internal/upkeep"
	"vswitch/tunnel/udp"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/gateway"
)

// MaxPods is how many pods have counters of their own. Those beyond it, by the order
// in which they came, are counted together, as namespace "" and pod "other": a node
// of Kubernetes has 110 unless told otherwise.
const MaxPods = 256

// Port is a port of the switch and whose it is.
type Port struct {
	Kind           string // pod, host, tunnel or gateway
	Namespace, Pod string // of a pod
	vswitch.PortStats
}

// Sources is where the figures come from. Every function may be called at any time,
// from several goroutines; all are required. Where a part is not up yet it answers
// with zero values.
type Sources struct {
	Version string
	// Ports lists the ports there are, the oldest first; Retired are the drops of those
	// that have gone.
	Ports   func() []Port
	Retired func() map[drop.Reason]uint64
	// Flows are the connections in the flow table, and how many it has room for.
	Flows  func() (n, limit int)
	Tunnel func() udp.Stats
	// Peers are the other nodes by how trains of packets go to them.
	Peers     func() map[string]int
	Gateway   func() gateway.Stats
	Listeners func() []gateway.ListenerStatus
	Proxies   func() []gateway.ProxyStats
	DNS       func() dns.Stats
	// Upkeep is how what the node owns outside of the process is.
	Upkeep func() []upkeep.Status
	// Attachments are pods' and hosts' interfaces by state.
	Attachments func() map[string]int
	// FreeAddresses is for how many more pods the node has addresses; false: it has no
	// pod CIDR yet.
	FreeAddresses func() (int, bool)
	// Ready reports whether a pod added now would be connected.
	Ready   func() bool
	Control func() control.Figures
	// Programming is how long changes of endpoints took to reach the dataplane.
	Programming *control.Histogram
	// Restarts is how often the dataplane was started anew under its keeper.
	Restarts func() uint64
}

// Set is the daemon's metrics.
type Set struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	attach   prometheus.Histogram
	log      *slog.Logger
}

// callBuckets: an ADD takes milliseconds and may wait for a disk.
var callBuckets = []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5}

// New makes the metrics of a daemon.
func New(s Sources, log *slog.Logger) *Set {
	m := &Set{
		registry: prometheus.NewRegistry(), log: log,
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "vswitch_api_request_duration_seconds",
			Help:    "Time of calls to the daemon's API, by what CNI plugin and command line ask and the gRPC code of the answer.",
			Buckets: callBuckets,
		}, []string{"method", "code"}),
		attach: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "vswitch_cni_add_duration_seconds",
			Help:    "Time from the CNI plugin's request for a pod until the pod's interface is connected.",
			Buckets: callBuckets,
		}),
	}
	m.registry.MustRegister(
		&collector{s: s}, m.calls, m.attach,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Called records a call of the API. It may be called from any goroutine, as may all.
func (m *Set) Called(method, code string, d time.Duration) {
	m.calls.WithLabelValues(method, code).Observe(d.Seconds())
}

// Attached records that a pod is connected, d after its plugin asked.
func (m *Set) Attached(d time.Duration) { m.attach.Observe(d.Seconds()) }

// maxScrapes are answered at once.
const maxScrapes = 4

// Handler answers a scrape.
func (m *Set) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelError), MaxRequestsInFlight: maxScrapes,
	})
}

// collector reads the sources when scraped.
type collector struct{ s Sources }

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	to <- programming
	for _, f := range families {
		to <- f.desc
	}
}

var programming = prometheus.NewDesc("vswitch_endpoints_programming_duration_seconds",
	"Time from the change of a pod or a service, as its EndpointSlice's last-change-trigger-time says, until this node goes by it.", nil, nil)

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	counts, sum := c.s.Programming.Buckets()
	within, all := map[float64]uint64{}, uint64(0)
	for _, b := range counts {
		if all = b.Count; b.AtMost != 0 {
			within[b.AtMost.Seconds()] = b.Count
		}
	}
	to <- prometheus.MustNewConstHistogram(programming, all, sum.Seconds(), within)
	s := once(c.s)
	for _, f := range families {
		f.read(&s, func(v float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...)
		})
	}
}

// once are the sources of which each that several families read is asked once, so that
// their figures are of one moment.
func once(s Sources) Sources {
	s.Ports, s.Tunnel, s.Gateway = constant(s.Ports()), constant(s.Tunnel()), constant(s.Gateway())
	s.DNS, s.Control = constant(s.DNS()), constant(s.Control())
	return s
}

func constant[T any](v T) func() T { return func() T { return v } }

// goVersion is the toolchain's.
func goVersion() string { return runtime.Version() }
