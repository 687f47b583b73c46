package kube_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
	"vswitch/control/kube"
	"vswitch/control/kube/kubetest"
)

func slice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	port := int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// churn changes things at random, and does to the server and its clients what happens
// to them, until the end is calm again.
func churn(api *kubetest.Server, rng *rand.Rand, steps int) {
	for range steps {
		i := rng.IntN(6)
		name := fmt.Sprintf("s%d", i)
		switch rng.IntN(14) {
		case 0, 1, 2:
			api.Put("services", service(name, fmt.Sprintf("10.96.0.%d", 1+rng.IntN(200))))
		case 3, 4, 5, 6:
			api.Put("endpointslices", slice(name+"-1", name, fmt.Sprintf("10.244.1.%d", 1+rng.IntN(200)), fmt.Sprintf("10.244.2.%d", 1+rng.IntN(200))))
		case 7:
			api.Delete("services", "default", name)
		case 8:
			api.Delete("endpointslices", "default", name+"-1")
		case 9:
			api.Put("nodes", node(fmt.Sprintf("n%d", i), fmt.Sprintf("10.244.%d.0/24", 10+rng.IntN(100))))
		case 10:
			api.Disconnect()
		case 11:
			api.Forget()
		case 12:
			api.Stop()
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond) // as long as an outage lasts
			api.Start()
		case 13:
			api.Empty("endpointslices", true)
			api.Forget()
			api.Disconnect()
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
			api.Empty("endpointslices", false)
			api.Forget() // or nobody would ask again
			api.Disconnect()
		}
	}
}

func (s *sink) state() map[control.Key]control.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.objs)
}

// After whatever happens to connections, lists and events the state is that of a
// source that starts afresh (case 55), with lists that are streamed and with those of
// old.
func TestFaultsEndInTheStateOfAFreshStart(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			api := kubetest.New(t)
			if seed%2 == 1 {
				api.NoStreaming()
			}
			var past []kubetest.Object
			garble := rand.New(rand.NewPCG(seed, 2))
			api.Garble(func(o kubetest.Object) []kubetest.Object { // called one at a time
				past = append(past, o)
				out := []kubetest.Object{o}
				for range garble.IntN(3) {
					if p := past[garble.IntN(len(past))]; p["kind"] == o["kind"] {
						out = append(out, p)
					}
				}
				return out
			})
			b := start(t, api, func(c *kube.Config) { c.Grace = 100 * time.Millisecond })
			churn(api, rng, 60)
			api.Garble(nil)
			api.Put("services", service("last", "10.96.7.7")) // events of before have come when this one has
			fresh := start(t, api, nil)
			eventually(t, "the fresh source has listed", func() bool { return fresh.sink.lists() == 1 })
			want := fresh.sink.state()
			eventually(t, "the states agree", func() bool { return reflect.DeepEqual(b.sink.state(), want) })
			b.sink.mu.Lock()
			defer b.sink.mu.Unlock()
			if b.sink.resets != 1 || b.sink.deletedEarly {
				t.Errorf("%d full lists told, deleted before: %v; want one and changes from then on", b.sink.resets, b.sink.deletedEarly)
			}
		})
	}
}

// An API server that is away takes nothing away, and is said to be.
func TestAnOutage(t *testing.T) {
	api := kubetest.New(t)
	api.Put("services", service("web", "10.96.0.10"))
	b := start(t, api, nil)
	eventually(t, "all is heard", func() bool { return len(b.sink.keys()) == 1 })
	api.Stop()
	away := func() bool {
		b.sink.mu.Lock()
		defer b.sink.mu.Unlock()
		return b.sink.away
	}
	eventually(t, "the outage is told", away)
	if got := b.sink.keys(); len(got) != 1 {
		t.Errorf("during the outage: %v", got)
	}
	api.Put("services", service("new", "10.96.0.11"))
	api.Start()
	eventually(t, "what changed meanwhile is heard", func() bool { return !away() && len(b.sink.keys()) == 2 })
}

// What is no longer the cluster's proxy's to serve is only read where names are.
func TestOnlyWhatIsUsedIsRead(t *testing.T) {
	api := kubetest.New(t)
	mesh := service("mesh", "10.96.0.12")
	mesh.Labels = map[string]string{control.LabelProxyName: "mesh"}
	api.Put("services", mesh)
	bare := slice("bare-1", "bare", "10.244.0.9")
	bare.Labels[corev1.IsHeadlessService] = ""
	api.Put("endpointslices", bare)
	api.Put("services", service("web", "10.96.0.10"))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{NodeName: "there"}}
	api.Put("pods", pod)

	b := start(t, api, nil)
	named := start(t, api, func(c *kube.Config) { c.Names = true })
	eventually(t, "both have listed", func() bool { return b.sink.lists() == 1 && named.sink.lists() == 1 })
	if got := b.sink.keys(); !slices.Equal(got, []string{"Service default/web"}) {
		t.Errorf("without names: %v", got)
	}
	if got := named.sink.keys(); !slices.Equal(got, []string{"EndpointSlice default/bare-1", "Service default/mesh", "Service default/web"}) {
		t.Errorf("with names: %v", got)
	}
	if got := api.Asked(); !slices.Equal(got, []string{
		"list endpointslices", "list nodes", "list pods", "list services",
		"watch endpointslices", "watch nodes", "watch pods", "watch services",
	}) && !slices.Equal(got, []string{"watch endpointslices", "watch nodes", "watch pods", "watch services"}) {
		t.Errorf("asked for %v", got)
	}
}

// This node's pods are its own to tell; the API server adds labels and readiness, to
// the pod that is meant and no other of its name.
func TestPodsOfThisNode(t *testing.T) {
	api := kubetest.New(t)
	b := start(t, api, nil)
	eventually(t, "all is listed", func() bool { return b.sink.lists() == 1 })
	mine := control.NewPod(control.PodInfo{Node: "here", Namespace: "default", Name: "web-0", UID: "new", ContainerID: "c1", Interface: "eth0"})
	key := control.KeyOf(mine)
	b.PublishPod(mine)
	got := func() *corev1.Pod {
		p, _ := b.sink.get(key).(*corev1.Pod)
		return p
	}
	if p := got(); p == nil || len(p.Labels) != 0 {
		t.Fatalf("told %v, want the pod at once", p)
	}
	record := func(uid, app string, ready corev1.ConditionStatus) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-0", Labels: map[string]string{"app": app}}}
		p.UID = types.UID(uid)
		p.Spec.NodeName = "here"
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}
		return p
	}
	api.Put("pods", record("old", "former", corev1.ConditionTrue))
	api.Put("services", service("mark", "10.96.0.99"))
	eventually(t, "the mark is heard", func() bool { return len(b.sink.keys()) == 2 })
	api.Delete("pods", "default", "web-0")
	api.Put("pods", record("new", "web", corev1.ConditionFalse))
	eventually(t, "labels are heard", func() bool { return got().Labels["app"] == "web" })
	if c := got().Status.Conditions; len(c) != 1 || c[0].Status != corev1.ConditionFalse {
		t.Errorf("conditions %v, want what the API server says", c)
	}
	b.UnpublishPod(key)
	if got() != nil {
		t.Error("the pod is still told")
	}
}

// What can't be done as asked is an Event, once however many nodes find it.
func TestProblemsBecomeEvents(t *testing.T) {
	api := kubetest.New(t)
	api.Put("endpointslices", slice("web-1", "web", "127.0.0.1"))
	problem := control.Problem{Object: control.Key{Kind: control.KindEndpointSlice, Scope: "default", Name: "web-1"}, Reason: "endpoint not programmed: loopback"}
	quick := func(c *kube.Config) { c.Spread = time.Millisecond }
	a, b := start(t, api, quick), start(t, api, quick)
	eventually(t, "both have listed", func() bool { return a.sink.lists() == 1 && b.sink.lists() == 1 })
	a.Tell(problem)
	b.Tell(problem)
	eventually(t, "both have written", func() bool { return api.Requests("create", "events") == 2 })
	all := api.All("events")
	if len(all) != 1 {
		t.Fatalf("%d Events, want one", len(all))
	}
	at, _ := all[0]["involvedObject"].(map[string]any)
	uid := api.Get("endpointslices", "default", "web-1")["metadata"].(map[string]any)["uid"]
	if at["kind"] != "EndpointSlice" || at["name"] != "web-1" || at["uid"] != uid || all[0]["message"] != problem.Reason || all[0]["type"] != "Warning" {
		t.Errorf("Event %v", all[0])
	}
}
