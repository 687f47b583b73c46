package bench

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"vswitch/internal/lab/labtest"
	"vswitch/internal/traffic"
)

// TestMain lets the test binary be both sides of its own round trips.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "load") {
		c := &cobra.Command{}
		c.AddCommand(traffic.Commands()...)
		if err := c.Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestKernelAgainstItself(t *testing.T) {
	labtest.NeedRoot(t)
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skipf("%v: make bench-deps", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	scenarios, err := Parse([]byte(`
defaults: {duration: 50ms}
scenarios:
- {name: bridge, topology: same-node, subject: kernel-bridge, baseline: kernel-bridge, load: {kind: udp-rtt}}
- {name: vxlan, topology: two-nodes, underlay: wire, subject: kernel-vxlan, baseline: kernel-vxlan, load: {kind: tcp-rtt}}
- {name: stream, topology: same-node, subject: kernel-bridge, baseline: kernel-bridge, load: {kind: tcp, streams: 2}, duration: 1s}
`))
	if err != nil {
		t.Fatal(err)
	}
	var progress strings.Builder
	rows, err := Run(t.Context(), scenarios, Options{Self: self, Pairs: 1, Progress: &progress})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		// The bounds are of what can be right at all: one system, measured twice.
		if r.Error != "" || r.Ratio.Median < 0.05 || r.Ratio.Median > 20 || len(r.Subject.Samples) != 1 {
			t.Errorf("%s: %+v", r.Name, r)
		}
	}
	if len(rows) != len(scenarios) {
		t.Errorf("%d rows of %d scenarios", len(rows), len(scenarios))
	}
	if t.Failed() {
		t.Log(progress.String())
	}
}

func TestFailedRunIsAFailedRowAndTheOthersGoOn(t *testing.T) {
	labtest.NeedRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	scenarios, err := Parse([]byte(`
scenarios:
- {name: broken, topology: same-node, subject: vswitch, baseline: kernel-bridge, load: {kind: udp-rtt}, duration: 50ms}
- {name: whole, topology: same-node, subject: kernel-bridge, baseline: kernel-bridge, load: {kind: udp-rtt}, duration: 50ms}
`))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := Run(t.Context(), scenarios, Options{Self: self, BinDir: t.TempDir(), Pairs: 1, Duration: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[0].Error == "" || rows[0].Met() || rows[1].Error != "" {
		t.Errorf("rows %+v", rows)
	}
}
