package e2ek8s

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/internal/lab"
)

// A client stays with its endpoint while the service says ClientIP, and no longer.
func testAffinity(t *testing.T, r *rig) {
	ns := r.namespace(t, "affinity")
	r.apply(t, ns, deployment("web", 3)+deployment("client", 2)+strings.Replace(webService, "spec:", "spec:\n  sessionAffinity: ClientIP", 1))
	web := r.pods(t, ns, "web", 3)
	svc := r.service(t, ns, "web")
	for _, c := range r.pods(t, ns, "client", 2) {
		for _, family := range []int{4, 6} {
			at := vip(t, svc, family, "http")
			var first answer
			eventually(t, "an endpoint answers", func() (err error) { first, err = ask(r.inside(t, c), "tcp", at); return err })
			for range 30 {
				if a, err := ask(r.inside(t, c), "tcp", at); err != nil || a.name != first.name {
					t.Fatalf("%+v, %v; want %s again", a, err, first.name)
				}
			}
		}
	}
	r.kubectl(t, "patch", "service", "web", "-n", ns, "-p", `{"spec":{"sessionAffinity":"None"}}`)
	from := r.inside(t, r.pods(t, ns, "client", 2)[0])
	eventually(t, "connections are spread again", func() error {
		return sawAll(from, "tcp", vip(t, svc, 4, "http"), names(web)...)
	})
}

// statefulSet is n pods with names of their own below a headless service.
func statefulSet(n int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: peers}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {app: peer}
  ports: [{name: web, port: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: peer}
spec:
  serviceName: peers
  replicas: %d
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: peer}}
  template:
    metadata: {labels: {app: peer}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: lab, command: [vswitch-demo, hello], ports: [{name: web, containerPort: 8080}]}
---`, n)
}

// Pods find each other by name through a headless service, with a program that
// knows nothing of vswitch, and a pod that moves to another node is found there.
func testHeadless(t *testing.T, r *rig) {
	ns := r.namespace(t, "headless")
	r.apply(t, ns, statefulSet(3)+deployment("client", 1))
	peers := r.pods(t, ns, "peer", 3)
	client := r.pods(t, ns, "client", 1)[0]
	curl := func(name string, family int) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := r.Exec(ctx, client, "curl", "-sS", "--max-time", "5", fmt.Sprintf("-%d", family), "http://"+name+".peers:8080/")
		if err == nil && !strings.HasPrefix(string(out), name+" ") {
			err = fmt.Errorf("%q answered", out)
		}
		return err
	}
	for _, p := range peers {
		for _, family := range []int{4, 6} {
			eventually(t, p.Name+" answers to its name", func() error { return curl(p.Name, family) })
		}
	}

	// Case 9: the pod goes, and comes back on another node.
	moved := peers[0]
	old := hello(t, moved, 4)
	r.kubectl(t, "cordon", moved.Spec.NodeName)
	defer r.kubectl(t, "uncordon", moved.Spec.NodeName)
	r.kubectl(t, "delete", "pod", "-n", ns, moved.Name)
	now := r.pods(t, ns, "peer", 3)[0]
	if now.Name != moved.Name || now.Spec.NodeName == moved.Spec.NodeName {
		t.Fatalf("%s is on %s, want %s on another node than %s", now.Name, now.Spec.NodeName, moved.Name, moved.Spec.NodeName)
	}
	for _, family := range []int{4, 6} {
		eventually(t, "it answers to its name where it is now", func() error { return curl(moved.Name, family) })
	}
	if a, err := ask(r.inside(t, client), "tcp", old); err == nil {
		t.Errorf("%s answers at the address that %s had", a.name, moved.Name)
	}
	r.wantAddresses(t)
}

// gated is a deployment whose pods are ready when the test says so, and which go on
// answering for a while after they were told to end.
func gated(name string, n int) string {
	d := deployment(name, n)
	d = strings.Replace(d, "      terminationGracePeriodSeconds: 1\n", "      terminationGracePeriodSeconds: 60\n      readinessGates: [{conditionType: example.com/open}]\n", 1)
	return strings.Replace(d, `":9090"]`, `":9090", --linger, 60s]`, 1)
}

// open opens or closes the gate of a pod.
func (r *rig) open(t *testing.T, p *corev1.Pod, open corev1.ConditionStatus) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"example.com/open","status":%q}]}}`, open)
	_, err := r.Client.CoreV1().Pods(p.Namespace).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
}

// running waits until n pods of an app run, ready or not.
func (r *rig) running(t *testing.T, namespace, app string, n int) []*corev1.Pod {
	t.Helper()
	var all []*corev1.Pod
	eventually(t, fmt.Sprintf("%d pods of %s run", n, app), func() error {
		list, err := r.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		all = nil
		for i := range list.Items {
			if p := &list.Items[i]; p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				all = append(all, p)
			}
		}
		if len(all) != n {
			return fmt.Errorf("%v run", names(all))
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Pods that are not ready get no connections. One that leaves keeps those it has and
// gets no new ones, until all that are left are leaving.
func testTerminating(t *testing.T, r *rig) {
	ns := r.namespace(t, "terminating")
	r.apply(t, ns, gated("web", 2)+deployment("client", 1)+webService)
	web := r.running(t, ns, "web", 2)
	client := r.inside(t, r.pods(t, ns, "client", 1)[0])
	at := vip(t, r.service(t, ns, "web"), 4, "http")
	eventually(t, "nobody is ready: refused", func() error { return refused(client, at) })

	r.open(t, web[0], corev1.ConditionTrue)
	eventually(t, "the one that is ready answers", func() error { return sawAll(client, "tcp", at, web[0].Name) })
	r.open(t, web[1], corev1.ConditionTrue)
	eventually(t, "both answer", func() error { return sawAll(client, "tcp", at, names(web)...) })

	conns := map[string]net.Conn{}
	for len(conns) < 2 {
		c, err := dial(client, "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a, err := askOver(c, "tcp")
		if err != nil {
			t.Fatal(err)
		}
		conns[a.name] = c
	}
	still := func(when string) {
		t.Helper()
		for name, c := range conns {
			if a, err := askOver(c, "tcp"); err != nil || a.name != name {
				t.Errorf("%s: the connection to %s: %+v, %v", when, name, a, err)
			}
		}
	}
	// The ReplicaSet makes others in their place, which are never ready.
	r.kubectl(t, "delete", "pod", "-n", ns, web[0].Name, "--wait=false")
	r.wantTerminating(t, ns, web[0])
	eventually(t, "only the other gets new connections", func() error { return sawOnly(client, at, web[1].Name) })
	still("one leaves")
	r.kubectl(t, "delete", "pod", "-n", ns, web[1].Name, "--wait=false")
	r.wantTerminating(t, ns, web[1])
	eventually(t, "all that serve are leaving, and serve", func() error { return sawAll(client, "tcp", at, names(web)...) })
	still("both leave")
	r.kubectl(t, "delete", "deployment", "-n", ns, "web", "--cascade=orphan")
	r.kubectl(t, "delete", "replicaset", "-n", ns, "-l", "app=web", "--cascade=orphan")
	r.kubectl(t, "delete", "pod", "-n", ns, "-l", "app=web", "--grace-period=0", "--force")
	eventually(t, "nobody is left: refused", func() error { return refused(client, at) })
}

// wantTerminating waits until the controllers say that an endpoint terminates and serves.
func (r *rig) wantTerminating(t *testing.T, namespace string, p *corev1.Pod) {
	t.Helper()
	eventually(t, p.Name+" is a terminating endpoint", func() error {
		list, err := r.Client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=web"})
		if err != nil {
			return err
		}
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				if e.TargetRef != nil && e.TargetRef.UID == p.UID && *e.Conditions.Terminating && *e.Conditions.Serving {
					return nil
				}
			}
		}
		return fmt.Errorf("no slice says so")
	})
}

// sawOnly wants twenty connections in a row to be answered by one.
func sawOnly(from *lab.Namespace, at netip.AddrPort, want string) error {
	for range 20 {
		a, err := ask(from, "tcp", at)
		if err != nil {
			return err
		}
		if a.name != want {
			return fmt.Errorf("%s answered, want %s", a.name, want)
		}
	}
	return nil
}

// With internalTrafficPolicy Local a pod reaches endpoints of its own node alone.
func testInternalPolicy(t *testing.T, r *rig) {
	ns := r.namespace(t, "internal")
	r.apply(t, ns, deployment("web", 2)+deployment("client", 3)+strings.Replace(webService, "spec:", "spec:\n  internalTrafficPolicy: Local", 1))
	web := r.pods(t, ns, "web", 2)
	svc := r.service(t, ns, "web")
	for _, c := range r.pods(t, ns, "client", 3) {
		here := pods(web, c.Spec.NodeName)
		for _, family := range []int{4, 6} {
			at := vip(t, svc, family, "http")
			if len(here) > 0 {
				eventually(t, "the node's own endpoint answers", func() error { return sawOnly(r.inside(t, c), at, here[0].Name) })
				continue
			}
			// No endpoint here: dropped, as kube-proxy does, not sent elsewhere.
			if a, err := ask(r.inside(t, c), "tcp", at); err == nil {
				t.Errorf("%s on %s answered a client on %s", a.name, web[0].Spec.NodeName, c.Spec.NodeName)
			}
		}
	}
}
