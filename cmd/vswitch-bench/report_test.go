package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vswitch/bench"
)

// result writes a run of one row with a ratio into a file.
func result(t *testing.T, ratio float64) string {
	t.Helper()
	r := bench.Result{Rows: []bench.Row{{
		Scenario: bench.Scenario{Name: "a/row", Baseline: "kernel-bridge"}, HigherIsBetter: true,
		Ratio: bench.Spread{Median: ratio, Min: ratio * 0.9, Max: ratio * 1.1},
	}}}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "run.json")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// execute runs the program with arguments and returns what it printed.
func execute(args ...string) (string, error) {
	c := command()
	var out strings.Builder
	c.SetOut(&out)
	c.SetArgs(args)
	err := c.Execute()
	return out.String(), err
}

func TestCompareIsStrictOnlyWhenAsked(t *testing.T) {
	before, now := result(t, 1), result(t, 0.5)
	out, err := execute("compare", before, now)
	if err != nil || !strings.Contains(out, "1 worse") {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := execute("compare", "--strict", before, now); err == nil {
		t.Error("--strict: a worse row and no error")
	}
	if _, err := execute("compare", "--strict", now, before); err != nil {
		t.Errorf("--strict, and better: %v", err)
	}
}

func TestPlotAndReportWriteFiles(t *testing.T) {
	run, dir := result(t, 1), t.TempDir()
	if out, err := execute("plot", run, "-o", filepath.Join(dir, "plots")); err != nil || !strings.Contains(out, "ratios.svg") {
		t.Errorf("%v: %s", err, out)
	}
	document := filepath.Join(dir, "doc.md")
	text := "<!-- a run: written by vswitch-bench report -->\n<!-- end of the run -->\n"
	if err := os.WriteFile(document, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := execute("report", run, "--document", document); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(document)
	if err != nil || !strings.Contains(string(b), "a/row") || !strings.Contains(string(b), "](doc/ratios.svg)") {
		t.Errorf("%v: %s", err, b)
	}
	for _, plot := range []string{"plots/ratios.svg", "doc/ratios.svg"} {
		if svg, err := os.ReadFile(filepath.Join(dir, plot)); err != nil || !strings.Contains(string(svg), "a/row") {
			t.Errorf("%s: %v: %s", plot, err, svg)
		}
	}
}

func TestWhatIsNoRunIsRefused(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "another": `{"rows":[]}`, "a list": "[]"} {
		file := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := execute("plot", file, "-o", t.TempDir()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPageOfBenchmarksHasAPlaceForARun(t *testing.T) {
	page, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&bench.Result{}).Report(page, nil, "benchmarks"); err != nil {
		t.Error(err)
	}
}
