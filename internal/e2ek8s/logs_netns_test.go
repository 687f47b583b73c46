package e2ek8s

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unexpected are words that no daemon's log may hold.
var unexpected = []string{"panic", "goroutine ", "level=ERROR", "DATA RACE"}

// killed is said of a dataplane that a test has killed.
const killed = `level=ERROR msg="the dataplane ended; starting it again"`

// harmless are the reasons of drops that rise on a healthy node (docs/counters.md), and
// no-flow: an answer that comes when its connection has ended, with a pod that left.
var harmless = []string{"multicast", "not-for-us", "martian-target", "no-route", "hop-limit", "no-service", "no-endpoint", "no-flow"}

// Nothing that went on above made a daemon fail, or drop a frame for a reason that
// speaks of a mistake of its own.
func testLogs(t *testing.T, r *rig) {
	logs, err := filepath.Glob(filepath.Join(r.Lab.Dir, "*.vswitch.log"))
	if err != nil || len(logs) != len(r.nodes) {
		t.Fatalf("logs %v, %v; want one for each of %d nodes", logs, err, len(r.nodes))
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			for _, word := range unexpected {
				if strings.Contains(line, word) && !strings.Contains(line, killed) {
					t.Errorf("%s: %s", filepath.Base(name), strings.TrimSpace(line))
				}
			}
		}
	}
	for _, n := range r.nodes {
		var rows []struct {
			Name  string
			Count uint64
		}
		if err := n.Get(t.Context(), "drops", &rows); err != nil {
			t.Fatal(err)
		}
		sum := map[string]uint64{}
		for _, row := range rows {
			if row.Count > 0 {
				sum[row.Name] += row.Count
			}
		}
		for _, reason := range slices.Sorted(maps.Keys(sum)) {
			t.Logf("%s dropped %d as %s", n.Host, sum[reason], reason)
			if !slices.Contains(harmless, reason) {
				t.Errorf("%s dropped %d as %s", n.Host, sum[reason], reason)
			}
		}
	}
}
