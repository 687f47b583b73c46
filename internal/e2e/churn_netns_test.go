package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// Endpoints and nodes that come and go while others talk.

const churnService = `
apiVersion: v1
kind: Service
metadata: {name: churn}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: churn}
  ports:
  - {name: ask, port: 53, targetPort: %d, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: steady}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: churn}
  ports: [{name: greet, port: 7, targetPort: 7777}]
`

// Case 14 and the oldest bug of service proxies: a client that keeps its UDP
// socket follows the service's endpoints, whatever becomes of them. Meanwhile a
// TCP connection to an endpoint that another service goes on listing is not disturbed.
func TestEndpointChurn(t *testing.T) {
	c := newCluster(t)
	stays := c.pod(1, "stays", map[string]string{"app": "churn"})
	serveGreeting(t, stays, 7777)
	c.apply(fmt.Sprintf(churnService, 5354))
	s, steady := c.service("churn"), c.service("steady")
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			c.apply(fmt.Sprintf(churnService, 5354))
			var open net.Conn
			c.eventually("the service is known", func() (err error) {
				open, err = dialGreeting(c.a1.Namespace, netip.AddrPortFrom(steady.ip(family), 7), "stays")
				return err
			})
			defer open.Close()
			open.SetDeadline(time.Time{})
			stop, lines := make(chan struct{}), make(chan error, 1)
			var said atomic.Int64
			go func() {
				for {
					select {
					case <-stop:
						lines <- nil
						return
					default:
					}
					if err := echoes(open, "still here"); err != nil {
						lines <- err
						return
					}
					said.Add(1)
				}
			}()

			// One socket, one source port: to every part of the service one flow.
			client, err := dial(c.a1.Namespace, "udp", netip.AddrPort{}, netip.AddrPortFrom(s.ip(family), 53))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			answeredBy := func(want string) func() error {
				return func() error {
					got, err := askOn(client)
					if name, _, _ := strings.Cut(got, " "); err != nil || name != want {
						return fmt.Errorf("%q answered (%v), want %s", got, err, want)
					}
					return nil
				}
			}
			refused := func() error {
				if got, err := askOn(client); !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("%q, %v: want connection refused", got, err)
				}
				return nil
			}
			// "stays" has nobody on the UDP port: its own kernel refuses.
			c.eventually("unready: refused", refused)
			c.apply(fmt.Sprintf(strings.Replace(churnService, "app: churn", "app: other", 1), 5354))
			c.eventually("no endpoint: refused", refused)
			var last *lab.Pod
			for i, node := range []int{1, 0, 1} {
				name := fmt.Sprintf("v%d-%d", family, i)
				p := c.pod(node, name, map[string]string{"app": "other"})
				serveName(t, p, 5354)
				serveName(t, p, 5355)
				if last != nil {
					if err := last.Delete(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				c.eventually("the socket follows to "+name, answeredBy(name))
				last = p
			}
			c.apply(fmt.Sprintf(strings.Replace(churnService, "app: churn", "app: other", 1), 5355))
			c.eventually("the target port changes", answeredBy(last.Spec.Name))
			if err := last.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.eventually("the last endpoint leaves: refused", refused)

			close(stop)
			if err := <-lines; err != nil {
				t.Errorf("the TCP connection to the endpoint that stays: %v", err)
			}
			if said.Load() == 0 {
				t.Error("the TCP connection carried nothing")
			}
		})
	}
}

// askOn asks on a UDP socket that stays open, and waits a moment for the answer.
func askOn(conn net.Conn) (string, error) {
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("who")); err != nil {
		return "", err
	}
	b := make([]byte, 512)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// A node that falls silent is marked not ready and keeps its CIDRs and routes; a
// node that lives can't be deleted, one that is gone can, and the next to join
// gets its CIDRs.
func TestNodeLeaves(t *testing.T) {
	need(t, "ping")
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := a.Vswitch(ctx, "", "delete", "node", "b"); err == nil || !strings.Contains(err.Error(), "stop that one first") {
		t.Errorf("delete of a node that lives: %v", err)
	}
	before := peerRoutes(t, a, "b")
	if len(before) != 2 {
		t.Fatalf("routes to b: %v, want one of each family", before)
	}

	b.Daemon().Kill()
	c.eventually("a marks b not ready", func() error {
		if n, ok := nodesOf(t, a)["b"]; !ok || n.Ready {
			return fmt.Errorf("b is %+v", n)
		}
		return nil
	})
	if n := nodesOf(t, a)["b"]; fmt.Sprint(n.PodCIDRs) != fmt.Sprint([]string{"10.244.1.0/24", "fd00:10:244:1::/64"}) {
		t.Errorf("b, silent, has the pod CIDRs %v", n.PodCIDRs)
	}
	if got := peerRoutes(t, a, "b"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("routes to b, silent: %v, want %v still", got, before)
	}

	if labtest.Long() {
		c.backAndGoneAgain(ctx, b)
	}
	if out, err := a.Vswitch(ctx, "", "delete", "node", "b"); err != nil || !strings.Contains(string(out), "node/b deleted") {
		t.Fatalf("delete of a node that is gone: %v\n%s", err, out)
	}
	c.eventually("b is forgotten", func() error {
		if n, ok := nodesOf(t, a)["b"]; ok {
			return fmt.Errorf("b is %+v", n)
		}
		if r := peerRoutes(t, a, "b"); len(r) > 0 {
			return fmt.Errorf("routes to b: %v", r)
		}
		return nil
	})
	next, err := c.lab.AddNode("c")
	if err != nil {
		t.Fatal(err)
	}
	if err := next.StartDaemon(ctx, lab.RunConfig{Store: "etcd=" + a.StoreURL(), Args: []string{"--insecure"}}); err != nil {
		t.Fatal(err)
	}
	if n := nodesOf(t, next)["c"]; fmt.Sprint(n.PodCIDRs) != fmt.Sprint([]string{"10.244.1.0/24", "fd00:10:244:1::/64"}) {
		t.Errorf("c got the pod CIDRs %v, want those that b had", n.PodCIDRs)
	}
}

// backAndGoneAgain has a silent node come back as if nothing had been, and end for
// good: deleting it now has to wait for the rest of its lease.
func (c *cluster) backAndGoneAgain(ctx context.Context, b *lab.Node) {
	c.t.Helper()
	if err := b.RestartDaemon(ctx); err != nil {
		c.t.Fatal(err)
	}
	c.reattach(b)
	c.eventually("a marks b ready", func() error {
		if n := nodesOf(c.t, c.nodes[0])["b"]; !n.Ready {
			return fmt.Errorf("b is %+v", n)
		}
		return nil
	})
	for _, family := range []int{4, 6} {
		c.eventually("b's pods answer", func() error { return ping(c.a1, c.b1.IP(family), 1) })
	}
	b.Daemon().Kill()
}

type nodeRow struct {
	Name     string
	PodCIDRs []string
	Ready    bool
}

func nodesOf(t *testing.T, n *lab.Node) map[string]nodeRow {
	t.Helper()
	var rows []nodeRow
	get(t, n, "nodes", &rows)
	byName := map[string]nodeRow{}
	for _, r := range rows {
		byName[r.Name] = r
	}
	return byName
}

// peerRoutes are the destinations a node reaches by way of another.
func peerRoutes(t *testing.T, n *lab.Node, via string) (out []string) {
	t.Helper()
	var rows []struct{ Destination, Kind, Via string }
	get(t, n, "routes", &rows)
	for _, r := range rows {
		if r.Kind == "peer" && r.Via == via {
			out = append(out, r.Destination)
		}
	}
	return out
}
