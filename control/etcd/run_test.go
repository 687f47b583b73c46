package etcd

import (
	"slices"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

func TestNodesSeeEachOtherAndObjects(t *testing.T) {
	s := newServer(t)
	a, b := s.node("a"), s.node("b")
	b.PublishPod(pod("b", "web"))
	s.apply(b.Store, serviceYAML("web", ""))
	key := control.PodKey("b", "c-web", "eth0")
	svc := control.Key{Kind: control.KindService, Scope: "default", Name: "web"}
	a.view.await(t, "everything of b", has(nodeKey("a"), nodeKey("b"), leaseKey("a"), leaseKey("b"), key, svc))

	b.UnpublishPod(key)
	if err := b.Delete(s.context(), control.KindService, "default", "web"); err != nil {
		t.Fatal(err)
	}
	a.view.await(t, "pod and service to go", func(v *view) bool { return v.objs[key] == nil && v.objs[svc] == nil })
}

// While the store is away a node goes on with its own pods, and what happened
// meanwhile reaches the others when it is back (cases 55 and 57).
func TestPodsComeAndGoWhileTheStoreIsAway(t *testing.T) {
	s := newServer(t)
	a, b := s.node("a"), s.node("b")
	b.PublishPod(pod("b", "old"))
	old, fresh := control.PodKey("b", "c-old", "eth0"), control.PodKey("b", "c-new", "eth0")
	a.view.await(t, "the pod", has(old))

	s.stop()
	a.view.await(t, "word that the store is away", func(v *view) bool { return v.away })
	b.PublishPod(pod("b", "new"))
	b.UnpublishPod(old)
	b.view.await(t, "b's own view of its pods", func(v *view) bool { return v.objs[fresh] != nil && v.objs[old] == nil })
	if !has(old)(a.view) {
		t.Error("a forgot what it knew when the store went away")
	}

	s.start()
	a.view.await(t, "the store and b's changes", func(v *view) bool { return !v.away && v.objs[fresh] != nil && v.objs[old] == nil })
	a.view.await(t, "both leases", has(leaseKey("a"), leaseKey("b")))
}

// Records of pods that are gone are removed, but not before it is known which are.
func TestStaleRecordsGoOnceLocalStateIsLoaded(t *testing.T) {
	s := newServer(t)
	watch := s.node("watch")
	first := s.node("a")
	stays, goes := control.PodKey("a", "c-stays", "eth0"), control.PodKey("a", "c-goes", "eth0")
	first.PublishPod(pod("a", "stays"))
	first.PublishPod(pod("a", "goes"))
	watch.view.await(t, "both pods", has(stays, goes))
	first.stop()

	// The daemon starts again and does not know yet what survived.
	st := s.store("a")
	s.claim(st, "instance of a")
	second := &node{Store: st, view: &view{objs: map[control.Key]control.Object{}, wake: make(chan struct{}, 1)}}
	second.run(s)
	second.PublishPod(pod("a", "more"))
	watch.view.await(t, "a new pod beside the old ones", has(stays, goes, control.PodKey("a", "c-more", "eth0")))

	second.LoadPods([]*corev1.Pod{pod("a", "stays"), pod("a", "more")})
	watch.view.await(t, "the stale record to go", func(v *view) bool { return v.objs[goes] == nil && v.objs[stays] != nil })
	second.view.await(t, "the node itself to forget it", func(v *view) bool { return v.objs[goes] == nil && v.objs[stays] != nil })
}

// Pods that come together take fewer transactions than there are of them, and more than
// one transaction may hold; so do those that go together.
func TestPodsThatComeTogetherAreWrittenTogether(t *testing.T) {
	s := newServer(t)
	watch, n := s.node("watch"), s.node("a")
	const many = 3 * mostAtOnce
	var keys []control.Key
	for i := range many {
		name := "p" + strconv.Itoa(i)
		keys = append(keys, control.PodKey("a", "c-"+name, "eth0"))
		n.PublishPod(pod("a", name))
	}
	watch.view.await(t, "all pods", has(keys...))
	r, err := n.client.Get(s.context(), n.kindPrefix(control.KindPod)+"a/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	transactions := map[int64]bool{}
	for _, kv := range r.Kvs {
		transactions[kv.ModRevision] = true
	}
	if len(transactions) > many/4 || len(r.Kvs) != many {
		t.Errorf("%d pods by %d transactions, want %d by far fewer", len(r.Kvs), len(transactions), many)
	}
	for _, k := range keys {
		n.UnpublishPod(k)
	}
	watch.view.await(t, "all pods to go", func(v *view) bool {
		return !slices.ContainsFunc(keys, func(k control.Key) bool { return v.objs[k] != nil })
	})
}

// A store that lost everything is filled again by the nodes that run.
func TestAWipedStoreIsFilledAgain(t *testing.T) {
	s := newServer(t)
	a, b := s.node("a"), s.node("b")
	b.PublishPod(pod("b", "web"))
	key := control.PodKey("b", "c-web", "eth0")
	everything := has(nodeKey("a"), nodeKey("b"), leaseKey("a"), leaseKey("b"), key)
	a.view.await(t, "everything", everything)
	s.apply(a.Store, serviceYAML("web", ""))
	svc := control.Key{Kind: control.KindService, Scope: "default", Name: "web"}
	a.view.await(t, "the service", has(svc))

	s.wipe()
	a.view.await(t, "everything but the service", func(v *view) bool { return everything(v) && v.objs[svc] == nil })
	b.view.await(t, "the same at b", func(v *view) bool { return everything(v) && v.objs[svc] == nil })
}

// Nodes that have nothing to say write nothing, however often they renew their leases.
func TestAnIdleClusterWritesNothing(t *testing.T) {
	s := newServer(t)
	a, b := s.node("a"), s.node("b")
	a.view.await(t, "both leases", has(leaseKey("a"), leaseKey("b")))
	b.view.await(t, "both leases", has(leaseKey("a"), leaseKey("b")))
	revision := func() int64 {
		r, err := a.client.Get(s.context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	before := revision()
	first, err := a.leaseOf(s.context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	for now := first; !now.ends.After(first.ends.Add(3 * time.Second)); { // several heartbeats
		if now, err = a.leaseOf(s.context(), "b"); err != nil {
			t.Fatal(err)
		}
		if now.id != first.id {
			t.Fatal("b took another lease")
		}
		pause(s.context(), 0)
	}
	if after := revision(); after != before {
		t.Errorf("%d writes by an idle cluster", after-before)
	}
}

// A watch from a revision that was compacted ends, and the mirror lists anew.
func TestCompactionLeadsToAnotherList(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	var revision int64
	for range 3 {
		r, err := st.client.Put(s.context(), st.key("guard", "services"), "x")
		if err != nil {
			t.Fatal(err)
		}
		revision = r.Header.Revision
	}
	if _, err := st.client.Compact(s.context(), revision); err != nil {
		t.Fatal(err)
	}
	wantError(t, st.follow(s.context(), 1), "compacted")

	a := s.node("b")
	a.view.await(t, "a first list", func(v *view) bool { return v.resets == 1 })
	a.startOver()
	a.view.await(t, "another list", func(v *view) bool { return v.resets == 2 })
}

// A record that can't be read is left out and does not hide the others.
func TestAnUnreadableRecordIsLeftOut(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	for key, value := range map[string]string{
		"services/default/broken": "{",
		"services/default/other":  `{"metadata":{"namespace":"default","name":"web"}}`, // not what the key says
		"endpointslices/x":        "{}",
		"what/is/this":            "?",
	} {
		if _, err := st.client.Put(s.context(), st.cfg.Prefix+key, value); err != nil {
			t.Fatal(err)
		}
	}
	n := s.node("b")
	s.apply(st, serviceYAML("good", ""))
	n.view.await(t, "the good one", has(control.Key{Kind: control.KindService, Scope: "default", Name: "good"}))
	n.view.mu.Lock()
	defer n.view.mu.Unlock()
	for k := range n.view.objs {
		if k.Kind == control.KindEndpointSlice || k.Kind == control.KindService && k.Name != "good" {
			t.Errorf("%s came out of an unreadable record", k)
		}
	}
}

// More objects than a page holds come as one list.
func TestALongListComesInPages(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	const n = pageSize + 50
	for i := 0; i < n; i += 100 {
		var ops []clientv3.Op
		for j := i; j < min(i+100, n); j++ {
			p := pod("far", "p"+strconv.Itoa(j))
			value, err := encode(p)
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, clientv3.OpPut(st.objectKey(control.KeyOf(p)), value))
		}
		if _, err := st.client.Txn(s.context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	_, objs, err := st.listAll(s.context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[control.Key]bool{}
	for _, o := range objs {
		seen[control.KeyOf(o)] = true
	}
	if len(objs) != n || len(seen) != n {
		t.Errorf("%d objects, %d of them different; want %d", len(objs), len(seen), n)
	}
}
