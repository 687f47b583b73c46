package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// soakTime is how long pods come and go: ten seconds in `make test`, two minutes
// in `make test-long`, $VSWITCH_SOAK in `make soak`.
func soakTime(t *testing.T) time.Duration {
	switch os.Getenv("VSWITCH_TEST") {
	case "soak":
		d, err := time.ParseDuration(os.Getenv("VSWITCH_SOAK"))
		if err != nil {
			t.Fatalf("VSWITCH_SOAK: %v; want a duration like 12h", err)
		}
		return d
	case "long":
		return 2 * time.Minute
	}
	return 10 * time.Second
}

// Pods come and go while a connection and a service stay in use; afterwards the
// daemons hold what they held before: descriptors, threads, routes, flows' pods.
func TestSoak(t *testing.T) {
	c := newCluster(t)
	stays := c.pod(1, "stays", map[string]string{"app": "web"})
	serveName(t, stays, 8080)
	serveName(t, stays, 5354)
	serveGreeting(t, stays, 7777)
	c.apply(webService)
	web := c.service("web")
	vip := netip.AddrPortFrom(web.ip(4), 80)
	c.eventually("the service answers", func() error { return sawAll(c.a1.Namespace, "tcp", vip, "stays") })
	open, err := dialGreeting(c.a1.Namespace, netip.AddrPortFrom(web.ip(4), 7), "stays")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	round := func(i int) {
		t.Helper()
		pods := []*lab.Pod{c.pod(0, fmt.Sprintf("x%d", i), nil), c.pod(1, fmt.Sprintf("y%d", i), map[string]string{"app": "other"})}
		for _, p := range pods {
			for _, family := range []int{4, 6} {
				if err := ping(p, c.a1.IP(family), 2); err != nil {
					t.Errorf("round %d: %v", i, err)
				}
			}
			if s, err := ask(p.Namespace, "tcp", vip, "who"); err != nil || !strings.HasPrefix(s, "stays ") {
				t.Errorf("round %d: service: %q, %v", i, s, err)
			}
		}
		if err := echoes(open, fmt.Sprintf("round %d", i)); err != nil {
			t.Fatalf("round %d: the long-lived connection: %v", i, err)
		}
		for _, p := range pods {
			if err := p.Delete(t.Context()); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
	}
	for i := range 3 { // what is made once is made
		round(i)
	}
	before := c.usage()
	deadline := time.Now().Add(soakTime(t))
	rounds := 3
	for ; time.Now().Before(deadline); rounds++ {
		round(rounds)
	}
	t.Logf("%d rounds", rounds)
	c.eventually("descriptors are back where they were", func() error {
		for i, now := range c.usage() {
			if now.fds > before[i].fds || now.routes > before[i].routes {
				return fmt.Errorf("node %s: %+v, before %+v", c.nodes[i].Host, now, before[i])
			}
		}
		return nil
	})
	for i, now := range c.usage() {
		if now.rssKiB > before[i].rssKiB+32<<10 {
			t.Errorf("node %s: %d KiB resident, %d before %d rounds", c.nodes[i].Host, now.rssKiB, before[i].rssKiB, rounds)
		}
	}
	for _, n := range c.nodes {
		for reason, count := range nodeDrops(t, n) {
			if !expectedDrops[reason] {
				t.Errorf("node %s dropped %d frames as %s", n.Host, count, reason)
			}
		}
		if log := n.Daemon().Log(); strings.Contains(log, "panic") || strings.Contains(log, "DATA RACE") {
			t.Errorf("node %s: the log holds a panic", n.Host)
		}
	}
}

// usage is what a daemon holds: the keeper and the dataplane together.
type usage struct{ fds, routes, rssKiB int }

func (c *cluster) usage() []usage {
	c.t.Helper()
	var all []usage
	for _, n := range c.nodes {
		var u usage
		dataplane, err := n.Dataplane()
		if err != nil {
			c.t.Fatal(err)
		}
		for _, pid := range []int{n.Daemon().Pid(), dataplane} {
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil {
				c.t.Fatal(err)
			}
			u.fds += len(fds)
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				c.t.Fatal(err)
			}
			for line := range strings.Lines(string(status)) {
				if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					kiB := 0
					fmt.Sscan(rest, &kiB)
					u.rssKiB += kiB
				}
			}
		}
		var routes []struct{ Destination string }
		get(c.t, n, "routes", &routes)
		u.routes = len(routes)
		all = append(all, u)
	}
	return all
}
