package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/sdnotify/sdnotifytest"
)

// TestAServiceManagerKeepsDescriptors kills node a's keeper, and the dataplane with it,
// under load, and stops both in order: what the service manager kept, the next daemon goes on with.
// No plugin opens anything again.
func TestAServiceManagerKeepsDescriptors(t *testing.T) {
	c := newNodes(t, lab.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node, other := c.nodes[0], c.nodes[1]
	// The store is on the other node, as this one's goes with it.
	if err := other.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: []string{"--listen-client", other.StoreURL(), "--insecure"}}); err != nil {
		t.Fatal(err)
	}
	manager := sdnotifytest.New(t, 256)
	start := func() {
		t.Helper()
		wrapper, env, files := manager.Start()
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		run := lab.RunConfig{Store: "etcd=" + other.StoreURL(), Args: []string{"--insecure"}, Env: env, Wrapper: wrapper, Files: files}
		if err := node.StartDaemon(ctx, run); err != nil {
			t.Fatal(err)
		}
	}
	start()
	manager.Hears("READY=1", 1)
	c.addPods()
	near := c.pod(0, "near", map[string]string{"app": "witness"})
	far := c.pod(1, "far", nil)
	for _, p := range []*lab.Pod{near, far} {
		echo(t, p, 7)
	}
	c.apply(witnessService)
	vip := c.service("witness")
	monitor, err := c.a1.Start(lab.Command{Name: "monitor", Path: "ip", Args: []string{"-o", "monitor", "link", "address", "route"}})
	if err != nil {
		t.Fatal(err)
	}
	watches := []*watch{
		newWatch(t, "to another node", c.a1.Namespace, netip.AddrPortFrom(far.IP(6), 7)),
		newWatch(t, "from another node", c.b1.Namespace, netip.AddrPortFrom(near.IP(4), 7)),
	}
	load := newSteady(c, "a service", c.a1, near, netip.AddrPortFrom(vip.ip(4), steadyPort))
	for round, end := range []func(){
		func() { node.Daemon().Kill() },
		func() {
			if err := node.Daemon().Stop(); err != nil {
				t.Fatal(err)
			}
		},
		func() { node.Daemon().Kill() },
	} {
		before := manager.Names()
		began := time.Now()
		end()
		start()
		took := time.Since(began)
		laps(ctx, t, watches, fmt.Sprintf("round %d, of %v", round+1, took))
		manager.Hears("READY=1", round+2)
		if after := manager.Names(); !slices.Equal(withoutIDs(before), withoutIDs(after)) {
			t.Errorf("round %d: the manager keeps %q, and kept %q", round+1, after, before)
		}
	}
	load.losesNothing()
	if err := monitor.Stop(); err != nil {
		t.Fatal(err)
	}
	if said := monitor.Log(); said != "" {
		t.Errorf("a pod saw its interface change:\n%s", said)
	}
	if _, err := node.Vswitch(ctx, "", "upgrade"); err != nil {
		t.Fatal(err)
	}
	manager.Hears("READY=1", 5)
	if err := node.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	manager.Hears("STOPPING=1", 2)
	said := manager.Said()
	if tail := said[len(said)-3:]; tail[0] != "RELOADING=1" || tail[1] != "READY=1" || tail[2] != "STOPPING=1" {
		t.Errorf("at an upgrade and the end the manager heard %q", tail)
	}
}

var setID = regexp.MustCompile(`#[0-9a-z]+\.`)

// withoutIDs are a store's entries, sorted, without what tells sets apart: one that is kept
// anew gets another.
func withoutIDs(entries []string) []string {
	var all []string
	for _, e := range entries {
		all = append(all, setID.ReplaceAllString(e, "#."))
	}
	slices.Sort(all)
	return all
}
