package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// upkeepBound is the promise: within it, what somebody takes away is mended or
// reported.
const upkeepBound = 10 * time.Second

// upkeepSays wants an object's problem to contain a text; empty: wants none.
func upkeepSays(t *testing.T, n *lab.Node, object, text string) error {
	t.Helper()
	var rows []struct {
		Object, Problem string
	}
	get(t, n, "upkeep", &rows)
	for _, r := range rows {
		if r.Object == object && strings.Contains(r.Problem, text) && (text == "") == (r.Problem == "") {
			return nil
		}
	}
	return fmt.Errorf("%q of %q not among %+v", text, object, rows)
}

// Somebody deletes what is ours while traffic passes: the daemon mends what it can,
// and reports what it can't, within 10 seconds; nothing else is disturbed.
func TestWhatIsTakenAwayIsMendedOrReported(t *testing.T) {
	need(t, "ip")
	c := newCluster(t)
	a := c.nodes[0]
	echo(t, c.b1, 7)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watched := newWatch(t, "to another node", c.a1.Namespace, netip.AddrPortFrom(c.b1.IPv4, 7))
	lap := func(when string) {
		t.Helper()
		if _, err := watched.lap(ctx); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	lap("before")
	files := []string{a.Socket(), a.Socket() + ".fds", filepath.Join(a.StateDir(), "lock")}
	for _, path := range files {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range files {
		c.within(upkeepBound, path+" is back", func() error { _, err := os.Lstat(path); return err })
	}
	lap("the files are back")
	late := c.pod(0, "late", nil) // through both sockets
	if err := ping(late, c.b1.IPv4, 2); err != nil {
		t.Error(err)
	}

	// A route inside a pod is beyond the daemon's sight: CHECK tells.
	in := func(p *lab.Pod, args ...string) {
		t.Helper()
		if out, err := p.Exec(ctx, lab.Command{Path: "ip", Args: args}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := late.Check(ctx); err != nil {
		t.Errorf("CHECK before: %v", err)
	}
	in(late, "route", "del", "default")
	if err := late.Check(ctx); err == nil || !strings.Contains(err.Error(), "route to 0.0.0.0/0 is missing") {
		t.Errorf("CHECK of a pod without its route: %v", err)
	}

	// A TAP is gone for good, and nobody is sent there any more.
	in(c.a2, "link", "del", "eth0")
	c.within(upkeepBound, "the pod's interface is reported", func() error {
		return upkeepSays(t, a, "interfaces of pods", "default/a2: its interface eth0 is gone")
	})
	var pods []struct{ Name, State, Problem string }
	get(t, a, "pods", &pods)
	states := map[string]string{}
	for _, p := range pods {
		states[p.Name] = p.State
		if p.Name == "a2" && !strings.Contains(p.Problem, "made anew") {
			t.Errorf("a2: problem %q", p.Problem)
		}
	}
	if states["a1"] != "attached" || states["a2"] != "detached" || states["b1"] != "" {
		t.Errorf("states of pods: %v", states)
	}
	if err := c.a2.Check(ctx); err == nil {
		t.Error("CHECK of a pod without its interface is content")
	}
	if n := strings.Count(a.Daemon().Log(), "default/a2: its interface eth0 is gone"); n != 1 {
		t.Errorf("the log says it %d times, want once", n)
	}
	if err := c.a2.Delete(ctx); err != nil {
		t.Error(err)
	}
	c.within(upkeepBound, "nothing is wrong any more", func() error { return upkeepSays(t, a, "interfaces of pods", "") })
	lap("at the end")
}
