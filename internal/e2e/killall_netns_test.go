package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// TestServicesConnectionsOutliveTheDaemon kills node a's keeper and dataplane under load,
// with nobody to keep descriptors: the next daemon finds the flow table in its
// file, the plugin gives it the pods' devices, and connections go on, those to
// services too.
func TestServicesConnectionsOutliveTheDaemon(t *testing.T) {
	c := newCluster(t)
	near := c.pod(0, "near", map[string]string{"app": "witness"})
	far := c.pod(1, "far", nil)
	for _, p := range []*lab.Pod{near, far} {
		echo(t, p, 7)
	}
	c.apply(witnessService)
	vip := c.service("witness")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := c.nodes[0]
	load := newSteady(c, "a service", c.a1, near, netip.AddrPortFrom(vip.ip(4), steadyPort))
	watches := []*watch{
		newWatch(t, "to another node", c.a1.Namespace, netip.AddrPortFrom(far.IP(6), 7)),
		newWatch(t, "from another node", c.b1.Namespace, netip.AddrPortFrom(near.IP(4), 7)),
	}
	for round := range 2 {
		began := time.Now()
		node.Daemon().Kill()
		if err := node.RestartDaemon(ctx); err != nil {
			t.Fatal(err)
		}
		c.reattach(node)
		took := time.Since(began)
		laps(ctx, t, watches, fmt.Sprintf("round %d, of %v", round+1, took))
	}
	load.end() // what came in while no device was open is lost
}
