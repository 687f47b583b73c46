package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"vswitch/internal/lab"
)

// serviceAddr is the ClusterIP of the server, within everybody's default range;
// nodePort its port on the nodes.
var serviceAddr = netip.MustParseAddr("10.96.0.50")

const nodePort = 30201

func openVswitch(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	if k.topology.large() {
		return openKubernetes(ctx, l, k)
	}
	nodes, err := runVswitch(ctx, l, k)
	if err != nil {
		return nil, err
	}
	n := &network{node: nodes[0]}
	n.dropped = func(ctx context.Context) (map[string]uint64, error) { return vswitchDrops(ctx, nodes) }
	if k.topology == Attach {
		return n, nil
	}
	if k.topology == Idle {
		for i := range k.pods {
			if _, err := nodes[0].AddPod(ctx, lab.PodSpec{Name: fmt.Sprintf("idle-%d", i+1)}); err != nil {
				return nil, err
			}
		}
		return n, nil
	}
	spec := lab.PodSpec{Name: "client"}
	if k.system == "vswitch-plain" {
		spec.Offload = "off"
	}
	client, err := nodes[0].AddPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	if k.topology == Egress {
		out, err := outward(l, client.Namespace)
		if err != nil {
			return nil, err
		}
		n.endpoints = out.endpoints
		return n, nil
	}
	spec.Name, spec.Labels = "server", map[string]string{"app": "server"}
	server, err := nodes[len(nodes)-1].AddPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	n.endpoints = endpoints{client: client.Namespace, server: server.Namespace, to: server.IPv4}
	if k.topology != ClusterIP && k.topology != NodePort {
		return n, nil
	}
	// Many services first: the node programs them in order, so that all are there
	// when the last can be reached.
	if err := fill(ctx, nodes[0], k.services); err != nil {
		return nil, err
	}
	// The service is there for vswitch-direct too: only the way differs.
	n.tcpOnly = k.system == systemProxy
	if err := nodes[0].Apply(ctx, serviceYAML(k.system)); err != nil {
		return nil, err
	}
	switch {
	case k.system == "vswitch-direct":
	case k.topology == ClusterIP:
		n.to = serviceAddr
	case k.topology == NodePort:
		outside, err := l.Outside()
		if err != nil {
			return nil, err
		}
		n.client, n.to, n.port = outside.Namespace, nodes[0].Underlay4, nodePort
	}
	return n, nil
}

// runVswitch starts the daemons a topology wants, one or two.
func runVswitch(ctx context.Context, l *lab.Lab, k networkKey) ([]*lab.Node, error) {
	if k.topology == TwoNodes {
		a, b, err := l.AddPair("a", "b")
		if err != nil {
			return nil, err
		}
		nodes := []*lab.Node{a, b}
		return nodes, lab.RunCluster(ctx, nodes) // the MTU is derived, and checked
	}
	n, err := l.AddNode("a")
	if err != nil {
		return nil, err
	}
	nodes := []*lab.Node{n}
	return nodes, lab.RunCluster(ctx, nodes, "--mtu", strconv.Itoa(k.mtuBytes))
}

func serviceYAML(system string) string {
	annotations := "{}"
	udp := fmt.Sprintf("\n  - {name: udp, protocol: UDP, port: %[1]d, targetPort: %[1]d, nodePort: %[2]d}", loadPort, nodePort)
	if system == systemProxy { // which is for TCP
		annotations, udp = "{vswitch/mode: proxy}", ""
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: server, namespace: default, annotations: %[4]s}
spec:
  type: NodePort
  selector: {app: server}
  clusterIP: %[1]s
  clusterIPs: [%[1]q]
  ports:
  - {name: tcp, protocol: TCP, port: %[2]d, targetPort: %[2]d, nodePort: %[3]d}%[5]s
`, serviceAddr, loadPort, nodePort, annotations, udp)
}

const (
	systemProxy       = "vswitch-proxy"
	systemFew         = "vswitch-few"
	fewServices       = 10
	servicesEndpoints = 10 // of each service that is only there to be many
	servicesAtOnce    = 500
)

// fill gives the node that many services more.
func fill(ctx context.Context, n *lab.Node, services int) error {
	var b strings.Builder
	for i := range services {
		name := fmt.Sprintf("many-%d", i)
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default}
spec:
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints:
`, name)
		for e := range servicesEndpoints {
			at := i*servicesEndpoints + e
			fmt.Fprintf(&b, "- addresses: [10.%d.%d.%d]\n", 245+at>>16, at>>8&255, at&255)
		}
		if (i+1)%servicesAtOnce == 0 || i == services-1 {
			if err := n.Apply(ctx, b.String()); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return nil
}

// vswitchDrops sums the nodes' drops by reason.
func vswitchDrops(ctx context.Context, nodes []*lab.Node) (map[string]uint64, error) {
	sum := map[string]uint64{}
	for _, n := range nodes {
		var rows []struct {
			Name  string `json:"name"`
			Count uint64 `json:"count"`
		}
		if err := n.Get(ctx, "drops", &rows); err != nil {
			return nil, err
		}
		for _, r := range rows {
			sum[r.Name] += r.Count
		}
	}
	return sum, nil
}
