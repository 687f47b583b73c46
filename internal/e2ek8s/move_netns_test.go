package e2ek8s

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A working cluster of flannel nodes becomes one of vswitch nodes, one at a time: its
// pods leave, flannel.1 goes, vswitch starts, pods return. Pods of the others go on
// speaking to each other throughout, and with those of the moved node as soon as
// there are any, whichever kind their node is.
func TestMoveFromFlannel(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	flannels := map[string]*flanneld{}
	for _, name := range []string{"a", "b", "c"} {
		n, err := r.AddNode(ctx, name, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.nodes = append(r.nodes, n)
		flannels[name] = r.startFlannel(t, n)
		if err := n.Kubelet.SetReady(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	ns := r.namespace(t, "move")
	for _, n := range r.nodes {
		r.apply(t, ns, pinned("web-"+n.Host, n.Host))
	}
	r.eachPair(t, ns)

	for i, n := range r.nodes {
		t.Run("node "+n.Host, func(t *testing.T) {
			// Those that stay, under traffic all the time.
			w := newWatcher(t)
			for _, from := range r.nodes {
				for _, to := range r.nodes {
					if from == n || to == n || from == to {
						continue
					}
					src, dst := r.pods(t, ns, "web-"+from.Host, 1)[0], r.pods(t, ns, "web-"+to.Host, 1)[0]
					for _, family := range []int{4, 6} {
						what := fmt.Sprintf("%s to %s, IPv%d", from.Host, to.Host, family)
						w.open(t, what, r.inside(t, src), hello(t, dst, family))
						w.connect(what, r.inside(t, src), "tcp", hello(t, dst, family))
						w.connect(what, r.inside(t, src), "udp", hello(t, dst, family))
					}
				}
			}
			r.kubectl(t, "cordon", n.Host)
			r.kubectl(t, "scale", "-n", ns, "deployment/web-"+n.Host, "--replicas=0")
			r.pods(t, ns, "web-"+n.Host, 0)
			flannels[n.Host].remove(t)
			if err := n.StartDaemon(ctx, r.daemon(t, n)); err != nil {
				t.Fatal(err)
			}
			r.kubectl(t, "uncordon", n.Host)
			r.kubectl(t, "scale", "-n", ns, "deployment/web-"+n.Host, "--replicas=1")
			began := time.Now()
			r.eachPair(t, ns)
			t.Logf("%d of %d nodes moved; all pairs of pods reach each other %v after its pod returned", i+1, len(r.nodes), time.Since(began).Round(time.Millisecond))
			w.end(t)
		})
	}
}

// eachPair waits until each node's pod reaches each other's, by both families.
func (r *rig) eachPair(t *testing.T, namespace string) {
	t.Helper()
	pods := map[string]*corev1.Pod{}
	for _, n := range r.nodes {
		pods[n.Host] = r.pods(t, namespace, "web-"+n.Host, 1)[0]
	}
	for from, src := range pods {
		for to, dst := range pods {
			for _, family := range []int{4, 6} {
				eventually(t, fmt.Sprintf("%s reaches %s by IPv%d", from, to, family), func() error {
					return sawAll(r.inside(t, src), "tcp", hello(t, dst, family), dst.Name)
				})
				if err := ping(r.inside(t, src), ip(t, dst, family), 5); err != nil {
					t.Errorf("%s to %s: %v", from, to, err)
				}
			}
		}
	}
}

// pinned is a deployment of one pod for one node, which nothing but processes of
// other pods asks: flannel nodes have no path from the host to be probed by.
func pinned(name, node string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %[2]s}
      terminationGracePeriodSeconds: 1
      containers: [{name: hello, image: lab, command: [vswitch-demo, hello]}]
---`, name, node)
}
