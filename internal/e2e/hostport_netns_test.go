package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"vswitch/internal/lab"
)

// A host port given through CNI leads to its pod from outside, keeps the client's
// address, survives the daemon, and goes with the pod.
func TestHostPort(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0]
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	web, err := a.AddPod(t.Context(), lab.PodSpec{Name: "web", Ports: []lab.PortMapping{
		{HostPort: 8088, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 8088, ContainerPort: 8080, Protocol: "UDP"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	serveName(t, web, 8080)
	at := netip.AddrPortFrom(a.Underlay(), 8088)
	reach := func() {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			var said string
			c.eventually("the host port leads to the pod", func() (err error) {
				said, err = ask(outside.Namespace, network, at, "hello")
				return err
			})
			if name, client := answer(said); name != "web" || client != outside.Underlay() {
				t.Errorf("%s: %q, want web to answer and to see %v", network, said, outside.Underlay())
			}
		}
	}
	reach()

	// Another pod can't have the port while this one lives.
	second, err := a.NewPod(lab.PodSpec{Name: "second", Ports: []lab.PortMapping{{HostPort: 8088, ContainerPort: 80, Protocol: "tcp"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Add(t.Context()); err == nil || !strings.Contains(err.Error(), "leads to another pod") {
		t.Errorf("a second pod with the port: %v, want it refused", err)
	}

	if err := a.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	c.reattach(a)
	reach()

	if err := web.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if said, err := ask(outside.Namespace, "tcp", at, "hello"); err == nil {
		t.Errorf("after the pod has gone: %q, want nobody there", said)
	}
}
