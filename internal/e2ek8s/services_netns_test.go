package e2ek8s

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"vswitch/internal/lab"
)

// deployment is n pods that answer hello on 8080 and 9090, under a label app.
func deployment(name string, n int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hello
        image: lab
        command: [vswitch-demo, hello, --listen, ":8080", --listen, ":9090"]
        ports:
        - {name: web, containerPort: 8080}
        - {name: admin, containerPort: 9090}
        readinessProbe: {httpGet: {path: /, port: web}}
---`, name, n)
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: admin, port: 9090}
  - {name: hello, port: 80, targetPort: 8080, protocol: UDP}
`

// Pods of a Deployment reach each other, each by the address its node was given
// room for, and its services by every port and family, from every node.
func testServices(t *testing.T, r *rig) {
	ns := r.namespace(t, "services")
	r.apply(t, ns, deployment("web", 3)+deployment("client", 3)+webService)
	web, clients := r.pods(t, ns, "web", 3), r.pods(t, ns, "client", 3)
	svc := r.service(t, ns, "web")
	r.wantAddresses(t)

	for _, node := range r.nodes {
		client := on(t, clients, node.Host)
		from := r.inside(t, client)
		for _, family := range []int{4, 6} {
			t.Run(fmt.Sprintf("from %s, IPv%d", node.Host, family), func(t *testing.T) {
				for _, p := range web {
					if err := ping(from, ip(t, p, family), 3); err != nil {
						t.Errorf("to %s on %s: %v", p.Name, p.Spec.NodeName, err)
					}
				}
				for _, port := range []struct {
					name, network string
					to            uint16
				}{{"http", "tcp", 8080}, {"admin", "tcp", 9090}, {"hello", "udp", 8080}} {
					at := vip(t, svc, family, port.name)
					eventually(t, port.name+" reaches every endpoint", func() error {
						return sawAll(from, port.network, at, names(web)...)
					})
					a, err := ask(from, port.network, at)
					if err != nil || a.client != ip(t, client, family) || a.port != port.to {
						t.Errorf("%s: %+v, %v; want client %v at port %d", port.name, a, err, ip(t, client, family), port.to)
					}
				}
			})
		}
	}
	t.Run("a pod reaches itself through its service", func(t *testing.T) {
		self := web[0]
		for _, family := range []int{4, 6} {
			if err := sawAll(r.inside(t, self), "tcp", vip(t, svc, family, "http"), names(web)...); err != nil {
				t.Error(err)
			}
		}
	})
	from, at := r.inside(t, clients[0]), vip(t, svc, 4, "http")
	t.Run("without endpoints it is refused at once, and with them it works again", func(t *testing.T) {
		r.kubectl(t, "scale", "-n", ns, "deployment/web", "--replicas=0")
		eventually(t, "refused", func() error { return refused(from, at) })
		r.kubectl(t, "scale", "-n", ns, "deployment/web", "--replicas=2")
		web = r.pods(t, ns, "web", 2)
		eventually(t, "the new endpoints answer", func() error { return sawAll(from, "tcp", at, names(web)...) })
	})
}

// refused wants a connection to be refused.
func refused(from *lab.Namespace, at netip.AddrPort) error {
	a, err := ask(from, "tcp", at)
	if err == nil {
		return fmt.Errorf("%s answered", a.name)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

// wantAddresses checks that every pod's addresses are of its node's prefixes, which
// the controllers allotted, and that no two pods of the cluster share one.
func (r *rig) wantAddresses(t *testing.T) {
	t.Helper()
	prefixes := map[string][]netip.Prefix{}
	for _, n := range r.listNodes(t) {
		for _, c := range n.Spec.PodCIDRs {
			prefixes[n.Name] = append(prefixes[n.Name], netip.MustParsePrefix(c))
		}
	}
	holder := map[string]string{}
	for _, p := range r.listPods(t) {
		if p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning {
			continue
		}
		me := p.Namespace + "/" + p.Name
		for _, a := range p.Status.PodIPs {
			addr := netip.MustParseAddr(a.IP)
			inside := false
			for _, c := range prefixes[p.Spec.NodeName] {
				inside = inside || c.Contains(addr)
			}
			if !inside {
				t.Errorf("%s has %v, which is not of its node %s: %v", me, addr, p.Spec.NodeName, prefixes[p.Spec.NodeName])
			}
			if holder[a.IP] != "" {
				t.Errorf("%v belongs to %s and %s", addr, holder[a.IP], me)
			}
			holder[a.IP] = me
		}
	}
}
