package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestDefaultScenariosAreValid(t *testing.T) {
	scenarios, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		if s.Topology == InMemory {
			continue
		}
		want := 1500
		if s.Topology == TwoNodes {
			want = 1450
		}
		if strings.HasPrefix(s.Name, "rootless/65520/") { // as is usual there
			want = 65520
		}
		if s.MTUBytes != want {
			t.Errorf("%s: MTU %d, want %d", s.Name, s.MTUBytes, want)
		}
	}
}

func TestWholeSetTakesLessThanTwentyMinutes(t *testing.T) {
	scenarios, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	if d := expected(Usual(scenarios), Options{Pairs: defaultPairs}); d > 19*time.Minute {
		t.Errorf("expected to take %v, which leaves no room below 20 minutes", d)
	} else {
		t.Logf("expected to take %v", d.Round(time.Second))
	}
}

func TestBadScenarioFilesAreRefused(t *testing.T) {
	const good = "name: a\n  topology: same-node\n  subject: vswitch\n  baseline: kernel-bridge\n  duration: 1s\n  load: {kind: tcp}\n"
	if _, err := Parse([]byte("scenarios:\n- " + good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, tt := range []struct{ name, replace, with, want string }{
		{"an unknown key", "duration: 1s", "duration: 1s\n  speed: 3", "speed"},
		{"no name", "name: a", "name: ''", "no name"},
		{"an unknown topology", "same-node", "ring", `topology "ring"`},
		{"an unknown system", "kernel-bridge", "magic", `baseline "magic" is none of cni-bridge, fib, flow, kernel-bridge`},
		{"a system without the topology", "kernel-bridge", "kernel-vxlan", "has no topology same-node"},
		{"an underlay on one node", "duration: 1s", "duration: 1s\n  underlay: wire", "underlay"},
		{"no duration", "duration: 1s", "goal: 1", "duration"},
		{"a number as duration", "duration: 1s", "duration: 3", "3s"},
		{"an unknown load", "kind: tcp", "kind: http", `load kind "http"`},
		{"streams for round trips", "kind: tcp", "kind: udp-rtt, streams: 2", "one stream"},
		{"USO for a stream", "kind: tcp", "kind: tcp, uso: true", "USO"},
		{"a stream on one core", "kind: tcp", "kind: tcp, pin: true", "pinned"},
		{"a benchmark over a network", "kind: tcp", "kind: benchmark, benchmark: x", "can't run in topology same-node"},
		{"a benchmark for a stream", "kind: tcp", "kind: tcp, benchmark: x", "benchmark"},
		{"a metric the load hasn't got", "duration: 1s", "duration: 1s\n  metric: p99", `no metric "p99", but throughput`},
		{"another row without a name", "duration: 1s", "duration: 1s\n  also: [{metric: throughput}]", "no name"},
		{"another row of the same name", "duration: 1s", "duration: 1s\n  also: [{name: a, metric: throughput}]", "two rows"},
		{"pods where there are two", "duration: 1s", "duration: 1s\n  pods: 9", "idle"},
		{"a size for a stream", "kind: tcp", "kind: tcp, size: 9", "no message size"},
		{"an MTU out of range", "duration: 1s", "duration: 1s\n  mtu: 100", "mtu 100"},
		{"no scenarios", "name: a", "", "scenario"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte("scenarios:\n- " + strings.Replace(good, tt.replace, tt.with, 1)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := Parse([]byte("scenarios:\n- " + good + "- " + good)); err == nil {
		t.Error("two of one name: no error")
	}
	if _, err := Parse(nil); err == nil {
		t.Error("an empty file: no error")
	}
}

func TestWhatIsOnDemandIsMeasuredWhenNamed(t *testing.T) {
	all, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	named, err := Only(all, "^scale/")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range named {
		if !s.OnDemand {
			t.Errorf("%s is measured always", s.Name)
		}
	}
	if usual := Usual(all); len(usual)+len(named) != len(all) {
		t.Errorf("%d of %d are measured always, %d belong to scale", len(usual), len(all), len(named))
	}
}

func TestOnlyKeepsWhatMatches(t *testing.T) {
	all, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := Only(all, "^same-node/tcp")
	if err != nil || len(kept) != 5 {
		t.Errorf("%d kept, %v; want 5", len(kept), err)
	}
	if kept, err = Only(all, "^two-nodes/wire/udp-rtt/p99$"); err != nil || len(kept) != 1 {
		t.Errorf("by another of its rows: %d kept, %v; want 1", len(kept), err)
	}
	for _, pattern := range []string{"no-such-row", "("} {
		if _, err := Only(all, pattern); err == nil {
			t.Errorf("%q: no error", pattern)
		}
	}
}

func TestSpreadIsTheTrueMedianAndRange(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want Spread
	}{
		{[]float64{3, 1, 2}, Spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, Spread{2.5, 1, 4}},
		{[]float64{7}, Spread{7, 7, 7}},
		{nil, Spread{}},
	} {
		if got := newSpread(tt.in); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestRatioIsTakenPairByPair(t *testing.T) {
	row := Row{HigherIsBetter: true, Scenario: Scenario{Goal: 0.6}}
	for _, p := range [][2]float64{{1, 2}, {6, 8}, {9, 10}} {
		row.Subject.Samples = append(row.Subject.Samples, Sample{Value: p[0]})
		row.Baseline.Samples = append(row.Baseline.Samples, Sample{Value: p[1]})
	}
	row.summarize()
	if want := (Spread{0.75, 0.5, 0.9}); row.Ratio != want {
		t.Errorf("ratio %+v, want %+v", row.Ratio, want)
	}
	if !row.Met() {
		t.Error("0.75 does not meet 0.6")
	}
	row.HigherIsBetter = false
	if row.Met() {
		t.Error("for a time, 0.75 meets 0.6")
	}
	row.Error = "x"
	row.Goal = 0
	if row.Met() {
		t.Error("a failed row meets its goal")
	}
}

// A figure that was not measured is a failure, in the row itself and in those taken from
// the same measurements.
func TestAFigureThatIsMissingIsAFailure(t *testing.T) {
	s := Scenario{Metric: "ns/op", Also: []Also{{Name: "rate", Metric: "Mlookups/s"}}}
	if err := s.missing(map[string]float64{"ns/op": 3, "Mlookups/s": 0}); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	for _, has := range []string{"ns/op", "Mlookups/s", "ns/frame"} {
		if err := s.missing(map[string]float64{has: 1}); err == nil || !strings.Contains(err.Error(), "but "+has) {
			t.Errorf("only %s: %v", has, err)
		}
	}
}

// An idle system may use nothing; what is compared with it has no ratio.
func TestNothingComparesWithNothing(t *testing.T) {
	row := Row{Unit: "ms"}
	row.Subject.Samples, row.Baseline.Samples = []Sample{{Value: 1}}, []Sample{{}}
	row.Baseline.System = "vswitch"
	row.summarize()
	if row.Error == "" || row.Met() {
		t.Errorf("error %q, goal met %v", row.Error, row.Met())
	}
	if _, err := json.Marshal(row); err != nil {
		t.Error(err)
	}
}

func TestIperf3OutputBecomesAFigureOrAnError(t *testing.T) {
	m, err := parseIperf3([]byte(`{"end":{"sum_sent":{"retransmits":3},"sum_received":{"bytes":1250000000,"seconds":1,"bits_per_second":1e10}}}`))
	if err != nil || m.figures["throughput"] != 10 || m.bytes != 1250000000 {
		t.Errorf("%+v, %v", m, err)
	}
	for name, in := range map[string]string{
		"an error":     `{"error":"unable to connect to server: No route to host","end":{}}`,
		"no bytes":     `{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}`,
		"nothing":      ``,
		"not JSON":     `iperf3: error`,
		"another form": `{"end":[]}`,
	} {
		if m, err := parseIperf3([]byte(in)); err == nil {
			t.Errorf("%s: %+v and no error", name, m)
		}
	}
}

func TestBusyCPUCountsAllButIdleAndStolenTime(t *testing.T) {
	got, err := parseBusyCPU("cpu  100 20 300 4000 50 6 70 8000 9 9\ncpu0 1 2 3\n")
	if want := 4960 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu a b c d e f g h"} {
		if _, err := parseBusyCPU(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestTableShowsFailureAsFailure(t *testing.T) {
	good := Row{Scenario: Scenario{Name: "good", Goal: 0.6}, Unit: "Gb/s", HigherIsBetter: true,
		Subject:  Side{System: "vswitch", Samples: []Sample{{Value: 8}}, Drops: map[string]uint64{"no-route": 3}},
		Baseline: Side{System: "kernel-bridge", Samples: []Sample{{Value: 16}}}}
	good.summarize()
	r := Result{Rows: []Row{good, {Scenario: Scenario{Name: "bad"}, Error: "it broke"}}}
	if r.Failed() != 1 {
		t.Errorf("%d failed, want 1", r.Failed())
	}
	var out strings.Builder
	if err := r.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"vswitch 8.00 Gb/s", "kernel-bridge 16.0 Gb/s", "0.50", ">= 0.6, missed", "FAILED", "bad failed: it broke", "no-route"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "NaN") || math.IsNaN(good.Ratio.Median) {
		t.Errorf("NaN in\n%s", out.String())
	}
}
