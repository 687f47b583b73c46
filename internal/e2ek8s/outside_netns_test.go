package e2ek8s

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"vswitch/internal/lab/cluster"
)

const nodePortService = `
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: %s
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: %s
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: hello, port: 80, targetPort: 8080, protocol: UDP}
---`

// A machine outside comes in by every node, family and protocol, and pods see its
// own address. With externalTrafficPolicy Local only nodes with an endpoint take it,
// and tell a load balancer so.
func testNodePorts(t *testing.T, r *rig) {
	outside, err := r.Lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	ns := r.namespace(t, "node-ports")
	// Two pods for three nodes: one node has none.
	r.apply(t, ns, deployment("web", 2)+fmt.Sprintf(nodePortService, "everywhere", "NodePort", "Cluster")+fmt.Sprintf(nodePortService, "local", "LoadBalancer", "Local"))
	web := r.pods(t, ns, "web", 2)
	everywhere, local := r.service(t, ns, "everywhere"), r.service(t, ns, "local")

	for _, n := range r.nodes {
		here := pods(web, n.Host)
		for _, at := range []netip.Addr{n.Underlay4, n.Underlay6} {
			client := outside.Underlay4
			if at.Is6() {
				client = outside.Underlay6
			}
			for _, port := range []struct{ name, network string }{{"http", "tcp"}, {"hello", "udp"}} {
				t.Run(fmt.Sprintf("%s at %v on %s", port.network, at, n.Host), func(t *testing.T) {
					to := netip.AddrPortFrom(at, nodePort(t, everywhere, port.name))
					eventually(t, "every endpoint answers", func() error {
						return sawAll(outside.Namespace, port.network, to, names(web)...)
					})
					if a, err := ask(outside.Namespace, port.network, to); err != nil || a.client != client || a.port != 8080 {
						t.Errorf("%+v, %v; want client %v at port 8080", a, err, client)
					}
					to = netip.AddrPortFrom(at, nodePort(t, local, port.name))
					if len(here) > 0 {
						eventually(t, "the node's own endpoints answer", func() error {
							return sawAll(outside.Namespace, port.network, to, names(here)...)
						})
						if a, err := ask(outside.Namespace, port.network, to); err != nil || a.client != client {
							t.Errorf("%+v, %v; want client %v", a, err, client)
						}
					} else if a, err := ask(outside.Namespace, port.network, to); err == nil {
						t.Errorf("%s answered at a node without endpoints", a.name)
					}
				})
			}
		}
		t.Run("health check of "+n.Host, func(t *testing.T) {
			want := 200
			if len(here) == 0 {
				want = 503
			}
			url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(n.Underlay4, uint16(local.Spec.HealthCheckNodePort)))
			eventually(t, "a load balancer is told", func() error {
				got, err := httpStatus(outside.Namespace, url)
				if err == nil && got != want {
					err = fmt.Errorf("%s: %d, want %d", url, got, want)
				}
				return err
			})
		})
	}
}

// pods are those of these that run on a node.
func pods(all []*corev1.Pod, node string) (here []*corev1.Pod) {
	for _, p := range all {
		if p.Spec.NodeName == node {
			here = append(here, p)
		}
	}
	return here
}

// A pod's hostPort leads to it, and is free again when it is gone.
func testHostPort(t *testing.T, r *rig) {
	outside, err := r.Lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	ns := r.namespace(t, "host-port")
	r.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: door, labels: {app: door}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: lab
    command: [vswitch-demo, hello]
    ports: [{containerPort: 8080, hostPort: 18080}]
`)
	door := r.pods(t, ns, "door", 1)[0]
	n := r.nodes[slices.IndexFunc(r.nodes, func(n *cluster.Node) bool { return n.Host == door.Spec.NodeName })]
	for _, at := range []netip.Addr{n.Underlay4, n.Underlay6} {
		eventually(t, "the host port leads to the pod", func() error {
			return sawAll(outside.Namespace, "tcp", netip.AddrPortFrom(at, 18080), "door")
		})
	}
	r.kubectl(t, "delete", "pod", "-n", ns, "door")
	eventually(t, "nobody answers any more", func() error {
		return refused(outside.Namespace, netip.AddrPortFrom(n.Underlay4, 18080))
	})
}
