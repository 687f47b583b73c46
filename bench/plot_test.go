package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// latencies is a row of round trips with a tail.
func latencies(name string) Row {
	r := Row{Scenario: Scenario{Name: name + "/p50", Metric: "p50", Load: Load{Kind: "udp-rtt"}, Baseline: "kernel-bridge"}, Unit: "us",
		Subject: Side{System: "vswitch"}, Baseline: Side{System: "kernel-bridge"}}
	for i := range 3 {
		f := float64(i)
		r.Subject.Samples = append(r.Subject.Samples, Sample{Value: 10 + f, Figures: map[string]float64{"p25": 1, "p50": 10 + f, "p90": 20 + f, "p99": 50 + f, "p99.9": 300 + 50*f, "p99.999": 9000}})
		r.Baseline.Samples = append(r.Baseline.Samples, Sample{Value: 9 + f, Figures: map[string]float64{"p50": 9 + f, "p90": 12 + f, "p99": 30 + f, "p99.9": 90 + 9*f}})
	}
	r.summarize()
	return r
}

func example() *Result {
	slow, fast := measured("slow & <odd>", true, 0.4, 0.5, 0.55), measured("fast", true, 12, 13, 15)
	slow.Goal, fast.Goal = 0.9, 10
	fast.Scenario.Baseline = "ovs-netdev"
	one, two := latencies("same-node/udp-rtt"), latencies("two-nodes/udp-rtt")
	sync := func(t Topology, nodes int) Row {
		r := Row{Scenario: Scenario{Name: "scale", Metric: "sync", Topology: t, Load: Load{Kind: "sync"}, Baseline: NoBaseline}, Unit: "s"}
		r.Cluster.Nodes, r.Cluster.Pods, r.Cluster.Services = nodes, 30*nodes, 2*nodes
		r.Subject.Samples = []Sample{{Figures: map[string]float64{"sync": 1, "memory": 100, "cpu": 2, "p99": float64(nodes)}}}
		return r
	}
	return &Result{Rows: []Row{sync(Simulated, 1000), sync(Simulated, 20000), sync(Kubernetes, 5000), slow, fast, measured("no goal", true, 1, 1.1, 1.2), failed("broken"), one, one.also(Also{Name: "same-node/udp-rtt/p99", Metric: "p99"}), two}}
}

func TestPlotsAreWellFormedAndHoldEveryRow(t *testing.T) {
	plots := example().Plots()
	want := map[string][]string{
		"ratios":     {"slow &amp; &lt;odd&gt;", "no goal", "broken", "failed", "&gt;= 0.9, missed"},
		"user-space": {"fast", "&gt;= 10, met"},
		"times":      {"same-node/udp-rtt/p50", "same-node/udp-rtt/p99"},
		"growth":     {"1000<", "20000<", "simulated", "real", "MB"},
		"latency":    {"same-node/udp-rtt<", "two-nodes/udp-rtt<", "p99.9", "vswitch", "kernel-bridge"},
	}
	if len(plots) != len(want) {
		t.Errorf("%d plots, want %d", len(plots), len(want))
	}
	for _, p := range plots {
		d := xml.NewDecoder(bytes.NewReader(p.SVG))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s is no XML: %v\n%s", p.Name, err, p.SVG)
			}
		}
		for _, w := range append(want[p.Name], "prefers-color-scheme: dark", "<title>") {
			if !bytes.Contains(p.SVG, []byte(w)) {
				t.Errorf("%s: %q is missing", p.Name, w)
			}
		}
		if regexp.MustCompile(`NaN|Inf`).Match(p.SVG) {
			t.Errorf("%s holds no number:\n%s", p.Name, p.SVG)
		}
	}
}

var coordinate = regexp.MustCompile(`(?:x|y|x1|x2|y1|y2|cx|cy)="([-0-9.]+)"`)

func TestPlotsStayWithinTheirFrame(t *testing.T) {
	for _, p := range example().Plots() {
		size := regexp.MustCompile(`viewBox="0 0 (\d+) (\d+)"`).FindSubmatch(p.SVG)
		most := 0.0
		for _, s := range size[1:] {
			v, _ := strconv.ParseFloat(string(s), 64)
			most = max(most, v)
		}
		for _, m := range coordinate.FindAllSubmatch(p.SVG, -1) {
			if v, err := strconv.ParseFloat(string(m[1]), 64); err != nil || v < 0 || v > most {
				t.Errorf("%s: %s is outside", p.Name, m[0])
			}
		}
	}
}

func TestRowsOfOneScenarioShareACurve(t *testing.T) {
	r := example()
	if n := strings.Count(string(r.curves()), "<polyline"); n != 4 {
		t.Errorf("%d lines for two scenarios of two sides", n)
	}
	if (&Result{Rows: r.Rows[:4]}).curves() != nil {
		t.Error("curves without latencies")
	}
}

func TestCurveEndsWhereTheSampleDoes(t *testing.T) {
	r := latencies("x")
	c := r.Subject.curve()
	if len(c.percentiles) != 4 || c.percentiles[0] != 50 || c.percentiles[3] != 99.9 {
		t.Errorf("percentiles %v", c.percentiles)
	}
	if want := (Spread{350, 300, 400}); c.spreads[3] != want {
		t.Errorf("p99.9 %+v, want %+v", c.spreads[3], want)
	}
}

func TestLogScaleHoldsItsValuesAndMirrorsReciprocals(t *testing.T) {
	for _, values := range [][]float64{{0.5, 2}, {0.07, 14}, {1}, {3, 3}, {1e-3, 1e3}, {10, 100}} {
		s := newLogScale(values, 100, 500)
		for _, v := range values {
			if v < s.low || v > s.high {
				t.Errorf("%v: %v is outside %v..%v", values, v, s.low, s.high)
			}
			if at := s.at(v); at < 100 || at > 500 {
				t.Errorf("%v: %v is drawn at %v", values, v, at)
			}
		}
		for _, tick := range s.ticks() {
			if tick < s.low*0.999 || tick > s.high*1.001 {
				t.Errorf("%v: a tick at %v, outside %v..%v", values, tick, s.low, s.high)
			}
		}
	}
	s := newLogScale([]float64{0.1, 10}, 0, 200)
	if up, down := s.at(4)-s.at(1), s.at(1)-s.at(0.25); math.Abs(up-down) > 1e-6 {
		t.Errorf("four times is %v from 1, a quarter %v", up, down)
	}
}
