package bench

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// measured is a row as a run leaves it: subject values against a baseline of 1.
func measured(name string, higherIsBetter bool, values ...float64) Row {
	r := Row{Scenario: Scenario{Name: name, Baseline: "kernel-bridge"}, HigherIsBetter: higherIsBetter, Unit: "Gb/s",
		Subject: Side{System: "vswitch"}, Baseline: Side{System: "kernel-bridge"}}
	for _, v := range values {
		r.Subject.Samples = append(r.Subject.Samples, Sample{Value: v})
		r.Baseline.Samples = append(r.Baseline.Samples, Sample{Value: 1})
	}
	r.summarize()
	return r
}

func failed(name string) Row {
	return Row{Scenario: Scenario{Name: name, Baseline: "kernel-bridge"}, HigherIsBetter: true, Error: "it broke"}
}

func TestOnlyAChangeBeyondTheSpreadCounts(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b Row
		want Verdict
	}{
		{"apart, and more", measured("r", true, 1, 2, 3), measured("r", true, 4, 5, 6), Better},
		{"apart, and less", measured("r", true, 4, 5, 6), measured("r", true, 1, 2, 3), Worse},
		{"a time, and less", measured("r", false, 4, 5, 6), measured("r", false, 1, 2, 3), Better},
		{"a time, and more", measured("r", false, 1, 2, 3), measured("r", false, 4, 5, 6), Worse},
		{"ranges that overlap, medians that don't", measured("r", true, 1, 2, 4.5), measured("r", true, 4, 5, 6), Better},
		{"a median in the other's range", measured("r", true, 1, 2, 5.5), measured("r", true, 4, 5, 6), Same},
		{"the other's median in the range", measured("r", true, 4, 5, 6), measured("r", true, 1, 2, 5.5), Same},
		{"the same figures", measured("r", true, 1, 2, 3), measured("r", true, 1, 2, 3), Same},
		{"fails now", measured("r", true, 1, 2, 3), failed("r"), FailedNow},
		{"works now", failed("r"), measured("r", true, 1, 2, 3), WorksNow},
		{"never worked", failed("r"), failed("r"), FailsBoth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Compare(&Result{Rows: []Row{tt.a}}, &Result{Rows: []Row{tt.b}}); len(got) != 1 || got[0].Verdict != tt.want {
				t.Errorf("%+v, want %s", got, tt.want)
			}
		})
	}
}

func TestComparisonNamesEveryRowAndWhatElseDiffers(t *testing.T) {
	gone, new, worse := measured("gone", true, 1, 1, 1), measured("new", true, 1, 1, 1), measured("slower", true, 1, 1, 1)
	worse.Subject.Drops = map[string]uint64{"no-route": 3, "multicast": 9}
	was := measured("slower", true, 2, 2, 2)
	was.Subject.Drops = map[string]uint64{"multicast": 2}
	a := &Result{Machine: Machine{Commit: "aaa", Kernel: "6.1"}, Settings: Settings{Pairs: 5}, Rows: []Row{gone, was}}
	b := &Result{Machine: Machine{Commit: "bbb", Kernel: "6.18"}, Settings: Settings{Pairs: 1}, Rows: []Row{new, worse}}
	var out strings.Builder
	n, err := WriteComparison(&out, a, b)
	if err != nil || n != 1 {
		t.Errorf("%d worse, %v; want 1", n, err)
	}
	for _, want := range []string{"from commit aaa", "to bbb", "kernel: 6.1, then 6.18", "1 pairs", "only in the first", "only in the second",
		"-50.0 %", "worse", "[no-route]", "0 better, 1 worse"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "NaN") || strings.Contains(out.String(), "Inf") {
		t.Errorf("no number in\n%s", out.String())
	}
}

func TestResultSurvivesItsFile(t *testing.T) {
	in := Result{Machine: Machine{Started: time.Unix(1e9, 0).UTC()}, Settings: Settings{Pairs: 3, Duration: Duration(time.Second)}, Rows: []Row{measured("r", true, 1, 2, 3)}}
	b, err := json.Marshal(&in)
	if err != nil {
		t.Fatal(err)
	}
	var out Result
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if c := Compare(&in, &out); len(c) != 1 || c[0].Verdict != Same || c[0].A != c[0].B {
		t.Errorf("%+v of\n%s", c, b)
	}
	if len(caveats(&in, &out)) != 0 {
		t.Errorf("differences %v", caveats(&in, &out))
	}
}

func TestAlsoIsTheOtherMetricOfTheSameSamples(t *testing.T) {
	r := Row{Scenario: Scenario{Name: "p50", Load: Load{Kind: "udp-rtt"}, Metric: "p50", Also: []Also{{Name: "p99", Metric: "p99", Goal: 3}}}, Unit: "us",
		Subject:  Side{Samples: []Sample{{Value: 10, Figures: map[string]float64{"p50": 10, "p99": 40}}}},
		Baseline: Side{Samples: []Sample{{Value: 5, Figures: map[string]float64{"p50": 5, "p99": 10}}}}}
	r.summarize()
	o := r.also(r.Also[0])
	if o.Name != "p99" || o.Ratio.Median != 4 || o.Met() || o.Unit != "us" {
		t.Errorf("%+v", o)
	}
	if r.Ratio.Median != 2 || r.Subject.Samples[0].Value != 10 {
		t.Errorf("the first row changed: %+v", r)
	}
}

func TestFigureWithoutBaselineIsJudgedItself(t *testing.T) {
	r := Row{Scenario: Scenario{Name: "idle", Baseline: NoBaseline, Goal: 0.2}, Unit: "% of a core",
		Subject: Side{System: "vswitch", Samples: []Sample{{Value: 0.1}, {Value: 0.3}, {Value: 0.15}}}}
	r.summarize()
	if !r.Met() || r.judged() != (Spread{0.15, 0.1, 0.3}) {
		t.Errorf("%+v", r)
	}
	var out strings.Builder
	if err := (&Result{Rows: []Row{r}}).WriteTable(&out); err != nil || !strings.Contains(out.String(), "<= 0.2, met") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestReportReplacesTheRunAndNothingElse(t *testing.T) {
	doc := "# How\n\ntext\n" + reportBegin + "\nold figures\n" + reportEnd + "\nmore text\n"
	r := &Result{Rows: []Row{measured("row-one", true, 1, 2, 3)}}
	first, err := r.Report([]byte(doc), r.Plots(), "benchmarks")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# How\n\ntext\n", "more text\n", "row-one", "](benchmarks/ratios.svg)"} {
		if !bytes.Contains(first, []byte(want)) {
			t.Errorf("%q is not in\n%s", want, first)
		}
	}
	if bytes.Contains(first, []byte("old figures")) {
		t.Errorf("the old run is still in\n%s", first)
	}
	second, err := r.Report(first, r.Plots(), "benchmarks")
	if err != nil || !slices.Equal(first, second) {
		t.Errorf("a second time, %v:\n%s", err, second)
	}
	if _, err := r.Report([]byte("# How\n"), nil, "x"); err == nil {
		t.Error("a document without a place for it: no error")
	}
}
