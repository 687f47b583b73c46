package e2ek8s

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vswitch/bench"
	"vswitch/internal/lab/labtest"
)

// Case 63, small: what `make bench ONLY=scale` measures is there and right, with nodes
// that the API server has and that do not run. Figures are the benchmark's to judge.
func TestCrowd(t *testing.T) {
	labtest.NeedRoot(t)
	all, err := bench.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	scenarios, err := bench.Only(all, "^scale/sync$")
	if err != nil {
		t.Fatal(err)
	}
	bin := labtest.BinDir(t)
	var progress strings.Builder
	rows, err := bench.Run(t.Context(), scenarios, bench.Options{
		BinDir: bin, Self: filepath.Join(bin, "vswitch-bench"), Pairs: 1, Duration: time.Second, Nodes: 60, Progress: &progress,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Error != "" {
			t.Fatalf("%s: %s\n%s", r.Name, r.Error, progress.String())
		}
		t.Logf("%s: %v %s", r.Name, r.Subject.Value.Median, r.Unit)
	}
	if s := rows[0].Subject.Samples[0]; s.Figures["correct"] != 100 {
		t.Errorf("lookups: %v", s.Detail)
	}
}
