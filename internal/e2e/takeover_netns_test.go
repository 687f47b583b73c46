package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vswitch/internal/lab"
)

const witnessService = `
apiVersion: v1
kind: Service
metadata: {name: witness, namespace: default}
spec:
  selector: {app: witness}
  ports:
  - {name: tcp, port: 7000, protocol: TCP}
  - {name: udp, port: 7000, protocol: UDP}
`

// TestADaemonTakesOverFromAnother replaces node a's whole daemon, keeper and all, by one
// that is started beside it, under load: nothing is lost, and no pod sees its
// interface change. One that fails leaves the place to the one before.
func TestADaemonTakesOverFromAnother(t *testing.T) {
	c := newCluster(t)
	near, far := c.pod(0, "near", map[string]string{"app": "witness"}), c.pod(1, "far", nil)
	for _, p := range []*lab.Pod{near, far} {
		echo(t, p, 7)
	}
	c.apply(witnessService)
	vip := c.service("witness")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := c.nodes[0]

	monitor, err := c.a1.Start(lab.Command{Name: "monitor", Path: "ip", Args: []string{"-o", "monitor", "link", "address", "route"}})
	if err != nil {
		t.Fatal(err)
	}
	var watches []*watch
	for _, family := range []int{4, 6} {
		watches = append(watches,
			newWatch(t, fmt.Sprintf("to another node, IPv%d", family), c.a1.Namespace, netip.AddrPortFrom(far.IP(family), 7)),
			newWatch(t, fmt.Sprintf("from another node, IPv%d", family), c.b1.Namespace, netip.AddrPortFrom(near.IP(family), 7)))
	}
	load := newSteady(c, "a service", c.a1, near, netip.AddrPortFrom(vip.ip(4), steadyPort))
	laps(ctx, t, watches, "before")
	for round := range 3 {
		before := node.Daemon().Pid()
		began := time.Now()
		if err := node.ReplaceDaemon(ctx); err != nil {
			t.Fatal(err)
		}
		if node.Daemon().Pid() == before {
			t.Fatal("no other daemon runs")
		}
		laps(ctx, t, watches, fmt.Sprintf("take-over %d, of %v", round+1, time.Since(began)))
	}

	// One that can't begin is of no harm.
	failing := node.Daemon().Pid()
	if err := node.ReplaceDaemonBy(ctx, lab.RunConfig{Store: "embedded", Args: []string{"--insecure", "--listen-client", "http://192.0.2.99:2379"}}); err == nil {
		t.Fatal("a daemon took over that can't listen where it should")
	}
	if node.Daemon().Pid() != failing {
		t.Fatal("the lab lost the daemon that goes on")
	}
	laps(ctx, t, watches, "after a take-over that failed")

	load.losesNothing()
	if err := monitor.Stop(); err != nil {
		t.Fatal(err)
	}
	if said := monitor.Log(); said != "" {
		t.Errorf("a pod saw its interface change:\n%s", said)
	}
}
