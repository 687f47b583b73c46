package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// storePid is the process of a node's embedded store, which writes it down.
func storePid(n *lab.Node) (int, error) {
	path := filepath.Join(n.StateDir(), "store", "process.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`"pid":\s*(\d+)`).FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("no pid in %s: %s", path, b)
	}
	return strconv.Atoi(string(m[1]))
}

// The store is stopped under traffic. A third node holds it, so
// that neither node under test does.
func TestStoreAway(t *testing.T) {
	need(t, "ping")
	c := &cluster{t: t, lab: labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)})}
	for _, name := range []string{"store", "a", "b"} {
		n, err := c.lab.AddNode(name)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := lab.RunCluster(ctx, c.nodes); err != nil {
		t.Fatal(err)
	}
	c.a1, c.b1 = c.pod(1, "a1", map[string]string{"app": "web"}), c.pod(2, "b1", map[string]string{"app": "web"})
	c.waitJoined()
	for _, p := range []*lab.Pod{c.a1, c.b1} {
		serveName(t, p, 8080)
		serveName(t, p, 5354)
		serveGreeting(t, p, 7777)
	}
	c.apply(webService)
	web := c.service("web")
	vip := netip.AddrPortFrom(web.ip(4), 80)
	for _, p := range []*lab.Pod{c.a1, c.b1} {
		c.eventually("both endpoints are known on both nodes", func() error {
			return sawAll(p.Namespace, "tcp", vip, "a1", "b1")
		})
	}
	open, err := dialGreeting(c.a1.Namespace, netip.AddrPortFrom(web.ip(4), 7), "b1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { open.Close() })

	// The node with the store stops: its daemon first, so that nobody starts the
	// store again, then the store.
	pid, err := storePid(c.nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[0].Daemon().Kill()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}

	carries := func(when string) {
		t.Helper()
		if err := echoes(open, when); err != nil {
			t.Errorf("%s: the open connection: %v", when, err)
		}
		for _, family := range []int{4, 6} {
			if err := ping(c.a1, c.b1.IP(family), 20); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		if err := sawAll(c.a1.Namespace, "tcp", vip, "a1", "b1"); err != nil {
			t.Errorf("%s: new connections to the service: %v", when, err)
		}
	}
	carries("store away")

	// ADD goes on from the claimed CIDR.
	late := c.pod(1, "late", nil)
	if err := ping(late, c.b1.IPv4, 3); err != nil {
		t.Errorf("a pod added while the store is away: %v", err)
	}
	// What needs the store says so.
	if err := c.nodes[1].Apply(ctx, webService); err == nil {
		t.Error("apply succeeded without a store")
	} else if !strings.Contains(strings.ToLower(err.Error()), "store") {
		t.Errorf("apply without a store says %q, want a word about the store", err)
	}

	// A daemon restarted now forwards from its last good state.
	if err := c.nodes[1].Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[1].RestartDaemon(ctx); err != nil {
		t.Fatalf("restart without a store: %v", err)
	}
	c.reattach(c.nodes[1])
	for _, family := range []int{4, 6} {
		c.eventually("the restarted node forwards", func() error { return ping(c.a1, c.b1.IP(family), 1) })
	}
	carries("restarted, store away")

	// The store returns, and everything that waited happens.
	if err := c.nodes[0].RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	c.eventually("the late pod is in the store", func() error {
		var pods []struct{ Name, Node string }
		get(t, c.nodes[2], "pods", &pods)
		for _, p := range pods {
			if p.Name == "late" && p.Node == "a" {
				return nil
			}
		}
		return fmt.Errorf("pods are %v", pods)
	})
	c.eventually("every node is ready again", func() error {
		var nodes []struct {
			Name  string
			Ready bool
		}
		get(t, c.nodes[2], "nodes", &nodes)
		for _, n := range nodes {
			if !n.Ready {
				return fmt.Errorf("nodes are %v", nodes)
			}
		}
		if len(nodes) != 3 {
			return errors.New("nodes are missing")
		}
		return nil
	})
	c.apply(strings.ReplaceAll(webService, "name: web,", "name: web-again,"))
	carries("store back")
}

// reattach gives a restarted daemon its pods' queues back, as an init container
// or a unit file does.
func (c *cluster) reattach(n *lab.Node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	out, err := n.Exec(ctx, lab.Command{Name: "reattach", Path: filepath.Join(labtest.BinDir(c.t), "vswitch-cni"), Args: []string{"reattach", "--socket", n.Socket()}})
	if err != nil {
		c.t.Fatalf("reattach: %v\n%s", err, out)
	}
}
