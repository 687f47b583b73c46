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
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		c := &cobra.Command{}
		c.AddCommand(traffic.Commands()...)
		if err := c.Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// peers are the systems that need a program of their own, and which.
var peers = map[string]string{"ovs-netdev": "ovs-vswitchd", "slirp4netns": "slirp4netns", "pasta": "pasta", "nftables-dnat": "nft"}

func TestEveryPeerAgainstItself(t *testing.T) {
	labtest.NeedRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ system, topology, load string }{
		{"kernel-bridge", "topology: same-node", "{kind: udp-bulk, uso: true}"},
		{"kernel-bridge", "topology: same-node", "{kind: tcp, streams: 2}"},
		{"kernel-vxlan", "{topology: two-nodes, underlay: wire}", "{kind: tcp-rtt}"},
		{"ovs-netdev", "topology: same-node", "{kind: udp-rate}"},
		{"nftables-dnat", "topology: cluster-ip", "{kind: connections}"},
		{"slirp4netns", "topology: egress", "{kind: tcp-rtt}"},
		{"pasta", "topology: egress", "{kind: tcp-rtt}"},
	} {
		t.Run(tt.system+" "+tt.load, func(t *testing.T) {
			program := peers[tt.system]
			if strings.Contains(tt.load, "kind: tcp,") {
				program = "iperf3"
			}
			if _, err := exec.LookPath(program); program != "" && err != nil {
				t.Skipf("%v: make bench-deps", err)
			}
			scenarios, err := Parse([]byte("scenarios:\n- {name: x, " + strings.Trim(tt.topology, "{}") + ", subject: " + tt.system +
				", baseline: " + tt.system + ", duration: 50ms, load: " + tt.load + "}\n"))
			if err != nil {
				t.Fatal(err)
			}
			var progress strings.Builder
			rows, err := Run(t.Context(), scenarios, Options{Self: self, Pairs: 1, Progress: &progress})
			if err != nil || len(rows) != 1 {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			// How close to 1 the ratio is depends on what else the machine does.
			if r := rows[0]; r.Error != "" || !(r.Ratio.Median > 0) || len(r.Subject.Samples) != 1 || len(r.Baseline.Samples) != 1 {
				t.Errorf("%+v\n%s", r, progress.String())
			}
		})
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
- {name: broken, topology: same-node, subject: vswitch, baseline: kernel-bridge, load: {kind: tcp-rtt}, duration: 50ms}
- {name: whole, topology: same-node, subject: kernel-bridge, baseline: kernel-bridge, load: {kind: tcp-rtt}, duration: 50ms}
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
