package control

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What tells nothing new costs nothing: a lease renewed, a node's heartbeat, a pod of
// no service.
func TestNewsThatChangesNothingCompilesNothing(t *testing.T) {
	o := NewObjects(testSelf)
	node := nodeOf(t, []string{"a", "192.0.2.2", "10.244.1.0/24", "zone=x"})
	o.Reset([]Object{
		node, lease("a"), podOf(t, []string{"p", "a", "10.244.1.2", "app=web"}),
		serviceOf(t, "web", "{type: LoadBalancer, selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
	}, time.Unix(0, 0))
	if d := o.Delta(); len(d.PutServices) != 1 || len(d.PutTunnels) != 1 || !o.ProblemsChanged() {
		t.Fatalf("first delta %+v", d)
	}
	beat := node.DeepCopyObject().(*corev1.Node)
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
	for name, news := range map[string]func(){
		"a lease renewed":     func() { o.Put(lease("a")) },
		"a node's heartbeat":  func() { o.Put(beat) },
		"a pod of no service": func() { o.Put(podOf(t, []string{"q", "a", "10.244.1.3", "app=db"})) },
		"a lease of no node":  func() { o.Put(lease("b")) },
	} {
		news()
		if len(o.dirty) > 0 || o.nodesDirty {
			t.Errorf("%s: %d services and nodes (%v) to be compiled", name, len(o.dirty), o.nodesDirty)
		}
		if d := o.Delta(); !d.Empty() || o.ProblemsChanged() {
			t.Errorf("%s: delta %+v", name, d)
		}
	}
	o.Delete(Key{KindLease, "", "a"})
	if d := o.Delta(); len(d.PutServices) != 1 {
		t.Errorf("a lease that ended: delta %+v, want the service without a live endpoint", d)
	}
}
