package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// moveBound is how long pods of two nodes may be apart when a node's address has
// become another: it is missed twice, at looks 4 seconds apart.
const moveBound = 12 * time.Second

// underlayOf is what a node tells of another, or itself.
func underlayOf(t *testing.T, at *lab.Node, name string) string {
	t.Helper()
	var rows []struct{ Name, Underlay string }
	get(t, at, "nodes", &rows)
	for _, r := range rows {
		if r.Name == name {
			return r.Underlay
		}
	}
	return ""
}

// Case 60: a node's address changes while it runs. It notices, tells the others, and
// traffic goes on, over the same connections.
func TestANodeChangesItsAddress(t *testing.T) {
	need(t, "ip")
	c := newNodes(t, lab.Config{})
	a, b := c.nodes[0], c.nodes[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := a.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: []string{"--listen-client", a.StoreURL(), "--insecure"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.StartDaemon(ctx, lab.RunConfig{Store: "etcd=" + a.StoreURL(), Args: []string{"--insecure"}, FindUnderlay: true}); err != nil {
		t.Fatal(err)
	}
	c.addPods()
	echo(t, c.a1, 7)
	echo(t, c.b1, 7)
	there := newWatch(t, "to the node that moves", c.a1.Namespace, netip.AddrPortFrom(c.b1.IPv4, 7))
	back := newWatch(t, "from the node that moves", c.b2.Namespace, netip.AddrPortFrom(c.a1.IPv6, 7))
	laps := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, moveBound+patience/2) // TCP doubles its waits
		defer cancel()
		for _, w := range []*watch{there, back} {
			longest, err := w.lap(ctx)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			t.Logf("%s: %s: longest round trip %v", when, w.name, longest)
		}
	}
	laps("before")
	ip := func(n *lab.Node, script string) {
		t.Helper()
		if out, err := n.Exec(ctx, lab.Command{Path: "sh", Args: []string{"-ec", script}}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	moves := []string{"192.0.2.77"}
	if labtest.Long() {
		moves = append(moves, "192.0.2.78", "192.0.2.79")
	}
	for round, next := range moves {
		was := underlayOf(t, a, "b")
		ip(b, fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr add %s/24 dev eth0; ip route replace default via 192.0.2.254", was, next))
		c.within(moveBound, "both nodes know the new address", func() error {
			for _, n := range c.nodes {
				if now := underlayOf(t, n, "b"); now != next {
					return fmt.Errorf("node %s knows %s", n.Host, now)
				}
			}
			return nil
		})
		for _, pair := range [][2]*lab.Pod{{c.a2, c.b2}, {c.b2, c.a2}} {
			c.within(moveBound, "pods reach each other", func() error { return ping(pair[0], pair[1].IPv4, 1) })
		}
		laps(fmt.Sprintf("round %d", round)) // messages from before the change among them
		laps(fmt.Sprintf("round %d", round))
		if err := upkeepSays(t, b, "underlay address", ""); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(b.Daemon().Log(), `"table taken over" table=flows`); n != len(moves) {
		t.Errorf("node b was replaced %d times, want %d", n, len(moves))
	}
	sockets := keptTunnels(t, b)
	if !strings.Contains(sockets, moves[len(moves)-1]+":8472") || strings.Contains(sockets, "192.0.2.12") {
		t.Errorf("the keeper holds sockets at addresses of the past:\n%s", sockets)
	}

	// An address that was given stays the node's: it is reported, and used again once
	// it is back.
	ip(a, "ip addr add 192.0.2.99/24 dev eth0; ip addr del 192.0.2.11/24 dev eth0; ip addr replace 192.0.2.99/24 dev eth0")
	c.within(moveBound, "the missing address is reported", func() error { return upkeepSays(t, a, "underlay address", "192.0.2.11") })
	ip(a, "ip addr add 192.0.2.11/24 dev eth0; ip addr del 192.0.2.99/24 dev eth0; ip addr replace 192.0.2.11/24 dev eth0; ip route replace default via 192.0.2.254")
	c.within(moveBound, "the address is back", func() error { return upkeepSays(t, a, "underlay address", "") })
	laps("the address is back")
	if got := underlayOf(t, b, "a"); got != "192.0.2.11" {
		t.Errorf("node a is known at %s", got)
	}
}

// keptTunnels are the UDP sockets of a node's daemon, its keeper's among them.
func keptTunnels(t *testing.T, n *lab.Node) string {
	t.Helper()
	out, err := n.Exec(t.Context(), lab.Command{Path: "ss", Args: []string{"-nuapH"}})
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, fmt.Sprintf("pid=%d,", n.Daemon().Pid())) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}
