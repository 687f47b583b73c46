package metrics

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"vswitch/control"
	"vswitch/internal/dns"
	"vswitch/internal/upkeep"
	"vswitch/tunnel/udp"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/gateway"
)

// sources answer as a busy node would, so that every metric has a value.
func sources() Sources {
	return Sources{
		Version: "v1",
		Ports: func() []Port {
			return []Port{
				{Kind: "tunnel", PortStats: port(1, 10)},
				{Kind: "pod", Namespace: "default", Pod: "web", PortStats: port(2, 20)},
				{Kind: "pod", Namespace: "default", Pod: "web", PortStats: port(3, 30)}, // its second interface
			}
		},
		Retired: func() map[drop.Reason]uint64 { return map[drop.Reason]uint64{drop.NoRoute: 5} },
		Flows:   func() (int, int) { return 7, 100 },
		Tunnel:  func() udp.Stats { return udp.Stats{TooBig: 1} },
		Peers:   func() map[string]int { return map[string]int{"on": 2} },
		Gateway: func() gateway.Stats { return gateway.Stats{EgressDialed: 3} },
		Listeners: func() []gateway.ListenerStatus {
			return []gateway.ListenerStatus{{Kind: gateway.HostPortAtAddress}, {Kind: gateway.HostPortAnywhere}, {Kind: gateway.NodePort, Err: os.ErrPermission}}
		},
		Proxies: func() []gateway.ProxyStats { return []gateway.ProxyStats{{Open: 1}, {Open: 2}} },
		DNS:     func() dns.Stats { return dns.Stats{Queries: 4} },

		Upkeep: func() []upkeep.Status {
			return []upkeep.Status{{Object: "lock", Found: 2, Mended: 1, Problem: "gone"}}
		},
		Attachments:   func() map[string]int { return map[string]int{"attached": 2} },
		FreeAddresses: func() (int, bool) { return 250, true },
		Ready:         func() bool { return true },
		Control: func() control.Figures {
			return control.Figures{Reachable: true, Objects: map[control.Kind]int{control.KindPod: 2}}
		},
		Programming: &control.Histogram{},
		Restarts:    func() uint64 { return 1 },
	}
}

func port(id uint32, frames uint64) vswitch.PortStats {
	return vswitch.PortStats{ID: id, Stats: vswitch.Stats{IngressFrames: frames, Drops: map[drop.Reason]uint64{drop.NoRoute: 1, drop.SpoofedIP: 2}}}
}

func newSet(s Sources) *Set {
	m := New(s, slog.New(slog.DiscardHandler))
	m.Called("AddPod", "OK", 3*time.Millisecond)
	m.Attached(4 * time.Millisecond)
	s.Programming.Observe(30 * time.Millisecond)
	return m
}

// ours are the metrics that are vswitch's own.
func ours(t *testing.T, m *Set) []*dto.MetricFamily {
	t.Helper()
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "vswitch_") })
}

func value(t *testing.T, m *Set, name string, labels ...string) float64 {
	t.Helper()
	for _, f := range ours(t, m) {
		for _, x := range f.GetMetric() {
			var have []string
			for _, l := range x.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			if f.GetName() == name && slices.Equal(have, labels) {
				return x.GetCounter().GetValue() + x.GetGauge().GetValue() + float64(x.GetHistogram().GetSampleCount())
			}
		}
	}
	return math.NaN()
}

func TestFigures(t *testing.T) {
	m := newSet(sources())
	for _, tt := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"vswitch_drops_total", []string{"reason=no-route"}, 5 + 3},
		{"vswitch_drops_total", []string{"reason=spoofed-ip"}, 6},
		{"vswitch_drops_total", []string{"reason=no-flow"}, 0},
		{"vswitch_port_ingress_frames_total", []string{"kind=pod", "namespace=default", "pod=web"}, 50},
		{"vswitch_port_ingress_frames_total", []string{"kind=tunnel", "namespace=", "pod="}, 10},
		{"vswitch_port_drops_total", []string{"kind=pod", "namespace=default", "pod=web"}, 6},
		{"vswitch_flows", nil, 7},
		{"vswitch_flows_limit", nil, 100},
		{"vswitch_gateway_egress_connections_total", []string{"result=made"}, 3},
		{"vswitch_gateway_listeners", []string{"kind=host-port", "state=open"}, 2},
		{"vswitch_gateway_listeners", []string{"kind=node-port", "state=failed"}, 1},
		{"vswitch_proxy_connections", nil, 3},
		{"vswitch_ready", nil, 1},
		{"vswitch_objects", []string{"kind=Pod"}, 2},
		{"vswitch_cni_add_duration_seconds", nil, 1},
		{"vswitch_endpoints_programming_duration_seconds", nil, 1},
		{"vswitch_api_request_duration_seconds", []string{"code=OK", "method=AddPod"}, 1},
	} {
		if got := value(t, m, tt.name, tt.labels...); got != tt.want {
			t.Errorf("%s%v: %v, want %v", tt.name, tt.labels, got, tt.want)
		}
	}
}

// However many pods come, there are no more than MaxPods and one with counters, and
// every frame is counted.
func TestPodsWithCountersOfTheirOwnAreLimited(t *testing.T) {
	s := sources()
	s.Ports = func() []Port {
		var all []Port
		for i := range 3 * MaxPods {
			all = append(all, Port{Kind: "pod", Namespace: "default", Pod: fmt.Sprint("p", i), PortStats: port(uint32(i), 1)})
		}
		return all
	}
	m := newSet(s)
	for _, f := range ours(t, m) {
		if f.GetName() == "vswitch_port_ingress_frames_total" {
			if n := len(f.GetMetric()); n != MaxPods+1 {
				t.Errorf("%d series, want %d", n, MaxPods+1)
			}
		}
	}
	if got := value(t, m, "vswitch_port_ingress_frames_total", "kind=pod", "namespace=", "pod=other"); got != 2*MaxPods {
		t.Errorf("others: %v, want %d", got, 2*MaxPods)
	}
	if got := value(t, m, "vswitch_port_ingress_frames_total", "kind=pod", "namespace=default", "pod=p0"); got != 1 {
		t.Errorf("the first: %v, want 1", got)
	}
}

func TestNamesAndUnitsFollowPrometheusConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(newSet(sources()).registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if err := prometheus.NewPedanticRegistry().Register(&collector{s: sources()}); err != nil {
		t.Error(err)
	}
}

// TestDocumented holds docs/metrics.md and the metrics together.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	_, table, _ := strings.Cut(string(text), "## All metrics")
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "| `vswitch_") {
			have = append(have, strings.TrimSpace(line))
		}
	}
	for _, f := range ours(t, newSet(sources())) {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, " "), f.GetHelp()))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("docs/metrics.md should have these rows:\n%s", strings.Join(want, "\n"))
	}
}
