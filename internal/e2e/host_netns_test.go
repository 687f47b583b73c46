package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vswitch/internal/lab"
)

// hostCommand runs `vswitch host VERB` for a node's own namespace.
func hostCommand(t *testing.T, n *lab.Node, verb string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.Vswitch(ctx, "", "host", verb, "--netns", n.Path)
	if err != nil {
		t.Fatalf("host %s: %v\n%s", verb, err, out)
	}
	return string(out)
}

// hostState is what a host's kernel knows of the interface: nothing of it may stay.
func hostState(t *testing.T, n *lab.Node) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.Exec(ctx, lab.Command{Path: "bash", Args: []string{"-c", "ip -o link; ip -o addr; ip route; ip -6 route; ip neigh show nud permanent"}})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var kept []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "vswitch0") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// An attached host reaches pods and services of every node and is reached, as if it
// were a pod; that lasts beyond the daemon, and detaching leaves nothing.
func TestHostAttach(t *testing.T) {
	need(t, "ping", "curl", "ip")
	c := newCluster(t)
	a := c.nodes[0]
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ipFamilyPolicy: RequireDualStack
  ports:
  - {name: t, port: 80, targetPort: 8080}
  - {name: u, port: 80, targetPort: 8080, protocol: UDP}`)
	web := c.pod(1, "web", map[string]string{"app": "web"})
	serveName(t, web, 8080)
	serveName(t, c.a2, 8080)
	svc := c.service("web")

	// A node of this lab is not the machine's own namespace, which has a path that lasts.
	if out, err := a.Vswitch(t.Context(), "", "host", "attach"); err == nil || !strings.Contains(err.Error()+string(out), "--netns") {
		t.Errorf("attach without a namespace: %v %s", err, out)
	}
	if out := hostCommand(t, a, "attach"); !strings.Contains(out, "vswitch0 attached: ") {
		t.Errorf("attach said %q", out)
	}
	if out := hostCommand(t, a, "attach"); !strings.Contains(out, "was attached already") {
		t.Errorf("attach again said %q", out)
	}
	host := hostAddrs(t, a)
	c.hostReaches(t, a, host, web, svc)

	// Routes that somebody deletes are reported, and put back by the same command.
	attached := hostState(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := a.Exec(ctx, lab.Command{Path: "ip", Args: []string{"route", "del", "10.244.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	c.within(upkeepBound, "the missing route is reported", func() error { return upkeepSays(t, a, "routes of the attached host", "10.244.0.0/16") })
	if out := hostCommand(t, a, "attach"); !strings.Contains(out, "vswitch0 repaired: ") {
		t.Errorf("attach without a route said %q", out)
	}
	if now := hostState(t, a); now != attached {
		t.Errorf("repaired:\n%s\nbefore:\n%s", now, attached)
	}
	c.within(upkeepBound, "the route is back", func() error { return upkeepSays(t, a, "routes of the attached host", "") })

	if err := a.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if out := hostCommand(t, a, "attach"); !strings.Contains(out, "attached again") {
		t.Errorf("attach after a restart said %q", out)
	}
	c.reattach(a) // the pods
	if now := hostAddrs(t, a); fmt.Sprint(now) != fmt.Sprint(host) {
		t.Errorf("addresses %v after a restart, want %v as before", now, host)
	}
	c.eventually("the host reaches the other node again", func() error { return pingFrom(a.Namespace, web.IP(4)) })
	c.hostReaches(t, a, host, web, svc)

	for range 2 { // the second time there is nothing to do
		hostCommand(t, a, "detach")
		if left := hostState(t, a); left != "" {
			t.Errorf("left after detach:\n%s", left)
		}
		if left := hostAddrs(t, a); left != nil {
			t.Errorf("the daemon still lists %v", left)
		}
	}
}

// hostReaches tries every way from and to an attached host.
func (c *cluster) hostReaches(t *testing.T, a *lab.Node, host map[int]netip.Addr, web *lab.Pod, svc service) {
	t.Helper()
	for _, family := range []int{4, 6} {
		for _, pod := range []*lab.Pod{c.a2, web} {
			if err := pingFrom(a.Namespace, pod.IP(family)); err != nil {
				t.Errorf("host to %s, IPv%d: %v", pod.Spec.Name, family, err)
			}
			if err := ping(pod, host[family], 2); err != nil {
				t.Errorf("%s to host, IPv%d: %v", pod.Spec.Name, family, err)
			}
			for _, network := range []string{"tcp", "udp"} {
				wantAnswer(t, a, network, netip.AddrPortFrom(pod.IP(family), 8080), pod.Spec.Name, host[family])
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			wantAnswer(t, a, network, netip.AddrPortFrom(svc.ip(family), 80), "web", host[family])
		}
	}
}

// wantAnswer asks from a node's namespace: name is to answer, and see the host.
func wantAnswer(t *testing.T, a *lab.Node, network string, to netip.AddrPort, name string, host netip.Addr) {
	t.Helper()
	said, err := ask(a.Namespace, network, to, "hello")
	if who, client := answer(said); err != nil || who != name || client != host {
		t.Errorf("host to %s %v: %q, %v; want %s to answer and to see %v", network, to, said, err, name, host)
	}
}

func pingFrom(ns *lab.Namespace, to netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := ns.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-q", "-c", "2", "-i", "0.01", "-w", "5", to.String()}}); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// hostAddrs are the addresses of the node's attached host as the daemon lists
// them, by family.
func hostAddrs(t *testing.T, n *lab.Node) map[int]netip.Addr {
	t.Helper()
	var rows []struct {
		Namespace, Node string
		IPs             []netip.Addr `json:"ips"`
	}
	get(t, n, "pods", &rows)
	for _, r := range rows {
		if r.Namespace == "host" && r.Node == n.Host {
			found := map[int]netip.Addr{}
			for _, a := range r.IPs {
				found[map[bool]int{true: 4, false: 6}[a.Is4()]] = a
			}
			return found
		}
	}
	return nil
}
