package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// outsideService has its endpoints on a machine outside the cluster, where one port
// is served and one is not.
func (c *cluster) outsideService(outside *lab.Node) service {
	c.t.Helper()
	machine := &lab.Pod{Namespace: outside.Namespace, Spec: lab.PodSpec{Name: "outside"}}
	serveName(c.t, machine, 8080)
	yaml := `
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  ipFamilyPolicy: RequireDualStack
  ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}, {name: no-tcp, port: 81}, {name: no-udp, port: 81, protocol: UDP}]
`
	for family, a := range map[string]netip.Addr{"IPv4": outside.Underlay4, "IPv6": outside.Underlay6} {
		yaml += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-%s, labels: {kubernetes.io/service-name: outside}}
addressType: %s
endpoints: [{addresses: [%q]}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}, {name: no-tcp, port: 8081}, {name: no-udp, port: 8081, protocol: UDP}]
`, map[string]string{"IPv4": "v4", "IPv6": "v6"}[family], family, a)
	}
	c.apply(yaml)
	return c.service("outside")
}

// A ClusterIP whose endpoint is no pod, as kubernetes.default's or a host-network
// pod's: the flow is rewritten to a place that egress leads to.
func TestEndpointsOutsideTheCluster(t *testing.T) {
	c := newCluster(t)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	s := c.outsideService(outside)
	for node, p := range map[*lab.Node]*lab.Pod{c.nodes[0]: c.a1, c.nodes[1]: c.b1} {
		for _, family := range []int{4, 6} {
			from := node.Underlay4
			if family == 6 {
				from = node.Underlay6
			}
			for _, network := range []string{"tcp", "udp"} {
				t.Run(fmt.Sprintf("%s by %s, IPv%d", p.Spec.Name, network, family), func(t *testing.T) {
					to := netip.AddrPortFrom(s.ip(family), 80)
					c.eventually("the service answers", func() error {
						got, err := ask(p.Namespace, network, to, "who")
						if err != nil {
							return err
						}
						if name, client := answer(got); name != "outside" || client != from {
							return fmt.Errorf("%q, want outside to see the node's address %v", got, from)
						}
						return nil
					})
					begin := time.Now()
					_, err := ask(p.Namespace, network, netip.AddrPortFrom(s.ip(family), 81), "who")
					if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > 2*time.Second {
						t.Errorf("a closed port there: %v after %v, want connection refused at once", err, time.Since(begin))
					}
				})
			}
		}
	}
}

// What pods don't reach unless it is configured: the host's loopback, and link-local
// addresses such as a cloud's metadata service.
func TestEgressThatIsConfigured(t *testing.T) {
	c := newCluster(t, "--allow-egress", "169.254.169.254/32", "--host-loopback", "203.0.113.2,2001:db8:ffff::2")
	node := &lab.Pod{Namespace: c.nodes[0].Namespace, Spec: lab.PodSpec{Name: "node"}}
	for _, a := range []string{"169.254.169.254/32", "169.254.169.253/32"} {
		if out, err := node.Exec(t.Context(), lab.Command{Path: "ip", Args: []string{"address", "add", a, "dev", "lo"}}); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	serveName(t, node, 9000)
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []string{"169.254.169.254", "203.0.113.2", "2001:db8:ffff::2"} {
			t.Run(network+" to "+to, func(t *testing.T) {
				at := netip.AddrPortFrom(netip.MustParseAddr(to), 9000)
				got, err := ask(c.a1.Namespace, network, at, "who")
				if name, _ := answer(got); err != nil || name != "node" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
	for reason, to := range map[string]string{"martian-target": "169.254.169.253"} {
		t.Run("not to "+to, func(t *testing.T) {
			before := podDrops(t, c.nodes[0], "a1", reason)
			if got, err := ask(c.a1.Namespace, "udp", netip.AddrPortFrom(netip.MustParseAddr(to), 9000), "who"); err == nil {
				t.Errorf("answered %q", got)
			}
			if after := podDrops(t, c.nodes[0], "a1", reason); after == before {
				t.Errorf("no drop named %s", reason)
			}
		})
	}
}
