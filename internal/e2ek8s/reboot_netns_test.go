package e2ek8s

import (
	"context"
	"fmt"
	"slices"
	"testing"
)

// Case 53. A node loses its power: processes and namespaces are gone, nobody called
// DEL, and only the state directory is left. Its pods get networks again, with no
// address twice, the others' traffic goes on, and nothing of before is left.
func testReboot(t *testing.T, r *rig) {
	ns := r.namespace(t, "reboot")
	r.apply(t, ns, deployment("web", 3)+deployment("client", 3)+webService)
	web, clients := r.pods(t, ns, "web", 3), r.pods(t, ns, "client", 3)
	svc := r.service(t, ns, "web")
	node := r.nodes[1]

	w := newWatcher(t)
	from, to := on(t, clients, "a"), on(t, web, "c")
	for _, family := range []int{4, 6} {
		w.open(t, "between the others", r.inside(t, from), hello(t, to, family))
		w.connect("between the others", r.inside(t, from), "tcp", hello(t, to, family))
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := node.Kubelet.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	node.Daemon().Kill()
	if err := node.DeleteLink("vswitch0"); err != nil {
		t.Fatal(err)
	}
	if err := node.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := node.Vswitch(ctx, "", "host", "attach", "--netns", node.Path); err != nil {
		t.Fatalf("host attach: %v\n%s", err, out)
	}
	if err := node.Kubelet.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}

	eventually(t, "the node's pods are there again", func() error { return r.wantPods(t, node.Host) })
	r.pods(t, ns, "web", 3)
	r.wantAddresses(t)
	for _, c := range r.pods(t, ns, "client", 3) {
		for _, family := range []int{4, 6} {
			eventually(t, "every endpoint answers", func() error {
				return sawAll(r.inside(t, c), "tcp", vip(t, svc, family, "http"), names(web)...)
			})
		}
	}
	w.end(t)
}

// wantPods checks that a node has the pods that the API server says it runs, with
// the same addresses, and no others.
func (r *rig) wantPods(t *testing.T, node string) error {
	t.Helper()
	var want, got []string
	for _, p := range r.listPods(t) {
		if p.Spec.NodeName == node && !p.Spec.HostNetwork && p.DeletionTimestamp == nil {
			for _, a := range p.Status.PodIPs {
				want = append(want, fmt.Sprintf("%s/%s %s", p.Namespace, p.Name, a.IP))
			}
		}
	}
	for _, n := range r.nodes {
		if n.Host != node {
			continue
		}
		var rows []struct {
			Namespace, Name, Node string
			IPs                   []string
		}
		if err := n.Get(t.Context(), "pods", &rows); err != nil {
			return err
		}
		for _, row := range rows {
			for _, a := range row.IPs {
				if row.Node == node && row.Namespace != "host" { // the node's own attachment
					got = append(got, fmt.Sprintf("%s/%s %s", row.Namespace, row.Name, a))
				}
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		return fmt.Errorf("the node has\n%v\nthe API server\n%v", got, want)
	}
	return nil
}
