package e2e

import (
	"context"
	"strings"
	"testing"

	"vswitch/internal/lab"
)

// Case 44: what says how a node is answers the host, and no pod, by whatever address it
// asks, unless the node was told to let pods ask.
func TestHealthIsNotForPods(t *testing.T) {
	need(t, "curl")
	const port = ":9472"
	for _, tt := range []struct {
		name string
		args []string
		pods bool
	}{
		{"by default", nil, false},
		{"let", []string{"--metrics-for-pods"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, append([]string{"--metrics-address", "[::]" + port, "--host-loopback", "10.0.2.2,fd00:0:0:ffff::2"}, tt.args...)...)
			hostCommand(t, c.nodes[0], "attach")
			attached := hostAddrs(t, c.nodes[0])
			get := func(from *lab.Namespace, host, path string) (string, error) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				out, err := from.Exec(ctx, lab.Command{Path: "curl", Args: []string{"-sS", "--max-time", "10", "http://" + host + port + path}})
				return string(out), err
			}
			for path, want := range map[string]string{
				"/healthz": "alive\n", "/readyz": "ready\n", "/metrics": "vswitch_port_ingress_frames_total{kind=\"pod\",namespace=\"default\",pod=\"a1\"}",
			} {
				if got, err := get(c.nodes[0].Namespace, "127.0.0.1", path); err != nil || !strings.Contains(got, want) {
					t.Errorf("%s: %v; want %q in\n%.2000s", path, err, want, got)
				}
			}
			for what, host := range map[string]string{
				"its node": c.nodes[0].Underlay().String(), "the other node": c.nodes[1].Underlay().String(),
				"its node's loopback": "10.0.2.2", "its node's loopback by IPv6": "[fd00:0:0:ffff::2]",
				"its attached host": attached[4].String(), "its attached host by IPv6": "[" + attached[6].String() + "]",
			} {
				got, err := get(c.a1.Namespace, host, "/metrics")
				if reached := err == nil && strings.Contains(got, "vswitch_"); reached != tt.pods {
					t.Errorf("a pod asks %s at %s: reached %v, want %v: %v", what, host, reached, tt.pods, err)
				}
			}
			hostCommand(t, c.nodes[0], "detach")
		})
	}
}
