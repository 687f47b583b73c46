package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"vswitch/internal/lab"
)

// TestAffinityOutlivesTheDaemon replaces node a's dataplane by a kill and as planned, and
// its daemon by another and by a kill: whoever had an endpoint of a service with affinity has
// it still. Five clients with four endpoints each keep all of theirs by chance once in a
// thousand times; four times in a row, once in 10^12.
func TestAffinityOutlivesTheDaemon(t *testing.T) {
	c := newCluster(t)
	for i, name := range []string{"sticky1", "sticky2", "sticky3", "sticky4"} {
		serveName(t, c.pod(i%2, name, map[string]string{"app": "sticky"}), 8080)
	}
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(fmt.Sprintf(stickyService, "ClientIP"))
	s := c.service("sticky")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := c.nodes[0]
	clients := []struct {
		name, network string
		ns            *lab.Namespace
		to            netip.AddrPort
		endpoint      string
	}{
		{name: "a pod", network: "tcp", ns: c.a1.Namespace, to: netip.AddrPortFrom(s.ip(4), 80)},
		{name: "a pod, IPv6", network: "tcp", ns: c.a1.Namespace, to: netip.AddrPortFrom(s.ip(6), 80)},
		{name: "a pod, UDP", network: "udp", ns: c.a1.Namespace, to: netip.AddrPortFrom(s.ip(4), 80)},
		{name: "another pod", network: "tcp", ns: c.a2.Namespace, to: netip.AddrPortFrom(s.ip(4), 80)},
		{name: "outside", network: "tcp", ns: outside.Namespace, to: netip.AddrPortFrom(node.Underlay4, s.nodePort(t, "tcp"))},
	}
	c.eventually("every client is served", func() error {
		for i := range clients {
			said, err := ask(clients[i].ns, clients[i].network, clients[i].to, "who")
			if err != nil {
				return err
			}
			clients[i].endpoint, _ = answer(said)
		}
		return nil
	})
	for _, event := range []struct {
		name string
		do   func() error
	}{
		{"the dataplane is killed", func() error {
			pid, err := node.Dataplane()
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		}},
		{"the dataplane is replaced", func() error { _, err := node.Vswitch(ctx, "", "upgrade"); return err }},
		{"another daemon takes over", func() error { return node.ReplaceDaemon(ctx) }},
		{"the whole daemon is killed", func() error {
			node.Daemon().Kill()
			if err := node.RestartDaemon(ctx); err != nil {
				return err
			}
			c.reattach(node)
			return nil
		}},
	} {
		before, err := node.Dataplane()
		if err == nil {
			err = event.do()
		}
		if err != nil {
			t.Fatalf("%s: %v", event.name, err)
		}
		c.eventually("another dataplane after: "+event.name, func() error {
			now, err := node.Dataplane()
			if err == nil && now == before {
				err = fmt.Errorf("still process %d", now)
			}
			return err
		})
		for _, client := range clients {
			c.eventually(event.name+", "+client.name+" is served", func() error {
				said, err := ask(client.ns, client.network, client.to, "who")
				if err != nil {
					return err
				}
				if got, _ := answer(said); got != client.endpoint {
					t.Errorf("%s: %s got %s, and had %s", event.name, client.name, got, client.endpoint)
				}
				return nil
			})
		}
	}
}
