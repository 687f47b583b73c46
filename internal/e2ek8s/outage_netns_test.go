package e2ek8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/cluster"
	"vswitch/internal/lab/labtest"
)

// sleepers are pods that only have a network.
const sleepers = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleeper}
spec:
  replicas: 6
  selector: {matchLabels: {app: sleeper}}
  template:
    metadata: {labels: {app: sleeper}}
    spec:
      automountServiceAccountToken: false
      containers: [{name: none, image: lab}]
---`

// The API server is killed under traffic while pods come and go, and stays away.
// Nothing that worked stops: neither connections, nor new ones, nor pods that are
// made anew on their node. A dataplane killed meanwhile comes back and forwards as before. When the
// API server is back, every node knows what a daemon knows that starts then.
func testOutage(t *testing.T, r *rig) {
	away := 30 * time.Second
	if labtest.Long() {
		away = 10 * time.Minute
	}
	ns := r.namespace(t, "outage")
	r.apply(t, ns, deployment("web", 3)+deployment("client", 3)+webService+"---"+sleepers)
	web, clients := r.pods(t, ns, "web", 3), r.pods(t, ns, "client", 3)
	r.pods(t, ns, "sleeper", 6)
	svc := r.service(t, ns, "web")

	w := newWatcher(t)
	for i, node := range r.nodes {
		from := r.inside(t, on(t, clients, node.Host))
		for _, family := range []int{4, 6} {
			at := vip(t, svc, family, "http")
			eventually(t, "every endpoint answers", func() error { return sawAll(from, "tcp", at, names(web)...) })
			w.open(t, fmt.Sprintf("%s to the service, IPv%d", node.Host, family), from, at)
			w.connect(fmt.Sprintf("%s to the service, IPv%d", node.Host, family), from, "tcp", at)
		}
		other := on(t, web, r.nodes[(i+1)%len(r.nodes)].Host)
		w.connect(node.Host+" to another node's pod", from, "udp", hello(t, other, 4))
	}

	churn := r.churn(t, ns)
	r.StopAPIServer()
	began := time.Now()
	atLeast := churn.Load() + 10
	eventually(t, "pods come and go", func() error {
		if n := churn.Load(); n < atLeast {
			return fmt.Errorf("%d were made anew, want %d", n, atLeast)
		}
		return nil
	})

	// A dataplane that starts now has its own memory alone to go by.
	r.killDataplane(t, r.nodes[2])
	for _, family := range []int{4, 6} {
		from := r.inside(t, on(t, clients, "c"))
		eventually(t, "the node carries traffic again", func() error {
			return sawAll(from, "tcp", vip(t, svc, family, "http"), names(web)...)
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), away+patience)
	defer cancel()
	if left := away - time.Since(began); left > 0 {
		select { // the length of the outage is what is tested
		case <-time.After(left):
		case <-ctx.Done():
		}
	}
	if err := r.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the API server was away for %v; %d pods were made anew", time.Since(began).Round(time.Second), churn.Load())
	churn.stop()
	w.end(t)

	r.pods(t, ns, "sleeper", 6)
	r.wantAddresses(t)
	r.likeFreshStart(t, r.nodes[1])
}

// The API server loses its store under traffic: it still answers, and knows nothing.
// Once the store is back nodes follow what changes.
func testEtcdAway(t *testing.T, r *rig) {
	ns := r.namespace(t, "etcd-away")
	r.apply(t, ns, deployment("web", 3)+deployment("client", 3)+webService)
	web, clients := r.pods(t, ns, "web", 3), r.pods(t, ns, "client", 3)
	at := vip(t, r.service(t, ns, "web"), 4, "http")
	w := newWatcher(t)
	for _, c := range clients {
		from := r.inside(t, c)
		eventually(t, "every endpoint answers", func() error { return sawAll(from, "tcp", at, names(web)...) })
		w.open(t, c.Spec.NodeName+" to the service", from, at)
		w.connect(c.Spec.NodeName+" to the service", from, "tcp", at)
	}
	r.StopEtcd()
	eventually(t, "the API server says that it is not ready", func() error {
		_, err := r.Client.CoreV1().RESTClient().Get().AbsPath("/readyz").Timeout(5 * time.Second).DoRaw(t.Context())
		if err == nil {
			return errors.New("it says that it is")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	w.end(t)
	eventually(t, "the API server takes changes again", func() error {
		_, err := r.Kubectl(ctx, "", "scale", "-n", ns, "deployment/web", "--replicas=4")
		return err
	})
	web = r.pods(t, ns, "web", 4)
	for _, c := range clients {
		eventually(t, "the new endpoint answers", func() error { return sawAll(r.inside(t, c), "tcp", at, names(web)...) })
	}
}

// churner makes pods anew, one after the other.
type churner struct {
	atomic.Int64
	stop func()
}

// churn makes every sleeper anew, over and over, and asks the API server for other
// numbers of them, which it may not hear.
func (r *rig) churn(t *testing.T, namespace string) *churner {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c := &churner{stop: func() { cancel(); <-done }}
	t.Cleanup(c.stop)
	pods := r.pods(t, namespace, "sleeper", 6)
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			p := pods[i%len(pods)]
			for _, n := range r.nodes {
				if n.Host == p.Spec.NodeName && n.Kubelet.Anew(p.UID) == nil {
					c.Add(1)
				}
			}
			select {
			case <-time.After(100 * time.Millisecond): // the rate of change
			case <-ctx.Done():
			}
		}
	}()
	return c
}

// shown are the kinds of objects a node shows that don't depend on its traffic.
var shown = []string{"nodes", "pods", "services", "endpoints", "routes", "listeners"}

// rows is what a node knows, by kind.
func rows(t *testing.T, n *cluster.Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, kind := range shown {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var got []map[string]any
		err := n.Get(ctx, kind, &got)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, row := range got {
			b, err := json.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			text += string(b) + "\n"
		}
		all[kind] = text
	}
	return all
}

// likeFreshStart compares what a node knows with what it knows after its daemon
// began anew, without the state of the cluster that it had kept.
func (r *rig) likeFreshStart(t *testing.T, n *cluster.Node) {
	t.Helper()
	before := r.settled(t, n)
	r.restart(t, n, true)
	var differ error
	eventually(t, "a fresh start knows the same", func() error {
		after := rows(t, n)
		differ = nil
		for _, kind := range shown {
			if before[kind] != after[kind] {
				differ = errors.Join(differ, fmt.Errorf("%s before:\n%safter:\n%s", kind, before[kind], after[kind]))
			}
		}
		return differ
	})
}

// settled is what a node knows once two looks, a second apart, agree.
func (r *rig) settled(t *testing.T, n *cluster.Node) map[string]string {
	t.Helper()
	last, looked := rows(t, n), time.Now()
	eventually(t, "what a node knows settles", func() error {
		if time.Since(looked) < time.Second {
			return errors.New("what is about to change has not had its time")
		}
		before := last
		last, looked = rows(t, n), time.Now()
		for _, kind := range shown {
			if last[kind] != before[kind] {
				return fmt.Errorf("%s before:\n%safter:\n%s", kind, before[kind], last[kind])
			}
		}
		return nil
	})
	return last
}

// restart ends a node's daemon and starts it again, with or without what it
// remembers of the cluster, and gives it its pods' queues back.
func (r *rig) restart(t *testing.T, n *cluster.Node, forget bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	if forget {
		r.forget(t, n)
	}
	if err := n.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	r.reattach(t, n)
}

// reattach gives a daemon its pods' queues back, as an init container does.
func (r *rig) reattach(t *testing.T, n *cluster.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.Exec(ctx, lab.Command{Name: "reattach", Path: filepath.Join(labtest.BinDir(t), "vswitch-cni"), Args: []string{"reattach", "--socket", n.Socket()}})
	if err != nil {
		t.Fatalf("reattach: %v\n%s", err, out)
	}
}

// killDataplane kills the process that does a daemon's work and waits for the next.
func (r *rig) killDataplane(t *testing.T, n *cluster.Node) {
	t.Helper()
	pid, err := n.Dataplane()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another dataplane runs", func() error {
		next, err := n.Dataplane()
		if err == nil && next == pid {
			err = errors.New("it is the one that was killed")
		}
		if err != nil {
			return err
		}
		_, err = n.Vswitch(t.Context(), "", "get", "nodes")
		return err
	})
}

// forget removes what a daemon that doesn't run remembers of the cluster. Its pods'
// addresses and its node's name are its own and stay.
func (r *rig) forget(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := os.Remove(filepath.Join(n.StateDir(), "objects.json")); err != nil {
		t.Fatal(err)
	}
}
