package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/pires/go-proxyproto"

	"vswitch/internal/lab"
)

const proxyServices = `
apiVersion: v1
kind: Service
metadata: {name: proxied, namespace: default, annotations: {vswitch/mode: proxy}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {proxied: "yes"}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: told, namespace: default, annotations: {vswitch/mode: proxy, vswitch/proxy-protocol: v2}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {told: "yes"}
  ports: [{name: http, port: 80, targetPort: 8081}]
`

// Services in proxy mode, for pods of both nodes and clients outside: one endpoint
// refuses and the client does not notice; a header tells the other who asks.
func TestProxyMode(t *testing.T) {
	c := newCluster(t)
	refuses := c.pod(0, "refuses", map[string]string{"proxied": "yes"})
	answers := c.pod(1, "answers", map[string]string{"proxied": "yes", "told": "yes"})
	serveName(t, answers, 8080)
	listenTCP(t, answers.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), 8081), func(conn net.Conn) {
		h, err := proxyproto.Read(bufio.NewReader(conn))
		if err != nil {
			fmt.Fprint(conn, err)
			return
		}
		fmt.Fprintf(conn, "version %d %v %v", h.Version, h.SourceAddr, h.DestinationAddr)
	})
	c.apply(proxyServices)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	proxied, told := c.service("proxied"), c.service("told")
	for _, family := range []int{4, 6} {
		node := c.nodes[0].Underlay4
		if family == 6 {
			node = c.nodes[0].Underlay6
		}
		vips := [2]netip.AddrPort{netip.AddrPortFrom(proxied.ip(family), 80), netip.AddrPortFrom(told.ip(family), 80)}
		nodePorts := [2]netip.AddrPort{
			netip.AddrPortFrom(node, proxied.nodePort(t, "http")), netip.AddrPortFrom(node, told.nodePort(t, "http")),
		}
		for _, from := range []struct {
			name string
			ns   *lab.Namespace
			to   [2]netip.AddrPort // proxied, told
		}{
			{"pod beside one endpoint", c.a1.Namespace, vips},
			{"pod beside the other", c.b1.Namespace, vips},
			{"pod at a node port", c.a1.Namespace, nodePorts},
			{"client outside", outside.Namespace, nodePorts},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", from.name, family), func(t *testing.T) {
				connect := func(to netip.AddrPort) (net.Conn, error) { return dial(from.ns, "tcp", netip.AddrPort{}, to) }
				c.eventually("the services are known", func() error {
					for _, to := range from.to {
						conn, err := connect(to)
						if err != nil {
							return err
						}
						conn.Close()
					}
					return nil
				})
				for range 12 {
					s, err := ask(from.ns, "tcp", from.to[0], "who")
					if name, _ := answer(s); name != answers.Spec.Name || err != nil {
						t.Errorf("%q answered, %v; one of the two endpoints does", s, err)
					}
				}
				conn, err := connect(from.to[1])
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				got, err := io.ReadAll(conn)
				if want := fmt.Sprintf("version 2 %v %v", conn.LocalAddr(), from.to[1]); string(got) != want || err != nil {
					t.Errorf("the endpoint was told %q (%v), want %q", got, err, want)
				}
			})
		}
	}
	if retried := c.proxied("proxied"); retried == 0 {
		t.Error("none of the connections met the endpoint that refuses first")
	}
	if err := answers.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.eventually("refused at once when no endpoint answers", func() error {
		if _, err := dial(c.a1.Namespace, "tcp", netip.AddrPort{}, netip.AddrPortFrom(proxied.ip(4), 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("got %v, want connection refused by %s alone", err, refuses.Spec.Name)
		}
		return nil
	})
}

// proxied is how often the first node's proxy had to try another endpoint.
func (c *cluster) proxied(service string) uint64 {
	c.t.Helper()
	var rows []struct {
		Name  string
		Proxy []struct{ Retried, Accepted uint64 }
	}
	get(c.t, c.nodes[0], "services", &rows)
	for _, r := range rows {
		if r.Name == service && len(r.Proxy) == 1 && r.Proxy[0].Accepted > 0 {
			return r.Proxy[0].Retried
		}
	}
	c.t.Fatalf("no figures of the proxy for %q in %+v", service, rows)
	return 0
}

const stickyService = `
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: %s
  selector: {app: sticky}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, protocol: TCP}
  - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
`

// Case 13: a client stays with its endpoint, from whatever socket and over either
// protocol's port by itself, until affinity is switched off.
func TestSessionAffinity(t *testing.T) {
	c := newCluster(t)
	for i, name := range []string{"sticky1", "sticky2", "sticky3"} {
		serveName(t, c.pod(i%2, name, map[string]string{"app": "sticky"}), 8080)
	}
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	const tries = 24 // that three endpoints answer as one: once in 10^11 runs
	answered := func(ns *lab.Namespace, network string, to netip.AddrPort) (map[string]bool, error) {
		names := map[string]bool{}
		for range tries {
			s, err := ask(ns, network, to, "who")
			if err != nil {
				return nil, err
			}
			name, _ := answer(s)
			names[name] = true
		}
		return names, nil
	}
	for _, mode := range []string{"None", "ClientIP", "None"} {
		c.apply(fmt.Sprintf(stickyService, mode))
		s := c.service("sticky")
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []struct {
				ns *lab.Namespace
				to netip.AddrPort
			}{
				{c.a1.Namespace, netip.AddrPortFrom(s.ip(4), 80)},
				{c.b1.Namespace, netip.AddrPortFrom(s.ip(4), 80)},
				{outside.Namespace, netip.AddrPortFrom(c.nodes[0].Underlay4, s.nodePort(t, network))},
			} {
				c.eventually(fmt.Sprintf("affinity %s holds for %s to %v", mode, network, from.to), func() error {
					names, err := answered(from.ns, network, from.to)
					if err != nil {
						return err
					}
					if (len(names) == 1) != (mode == "ClientIP") {
						return fmt.Errorf("%v answered", names)
					}
					return nil
				})
			}
		}
	}
}
