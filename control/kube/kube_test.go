package kube_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/control"
	"vswitch/control/kube"
	"vswitch/control/kube/kubetest"
	"vswitch/vswitch/frame"
)

// sink holds what it was told.
type sink struct {
	mu     sync.Mutex
	objs   map[control.Key]control.Object
	resets int
	away   bool
	// deletedEarly says that something was deleted before the first list.
	deletedEarly bool
}

func (s *sink) Reset(all []control.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objs = map[control.Key]control.Object{}
	for _, o := range all {
		s.objs[control.KeyOf(o)] = o
	}
	s.resets++
}

func (s *sink) Update(puts []control.Object, deletes []control.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objs == nil {
		s.objs = map[control.Key]control.Object{}
	}
	for _, o := range puts {
		s.objs[control.KeyOf(o)] = o
	}
	for _, k := range deletes {
		s.deletedEarly = s.deletedEarly || s.resets == 0
		delete(s.objs, k)
	}
}

func (s *sink) Reachable(ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = !ok
}

func (s *sink) get(k control.Key) control.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objs[k]
}

func (s *sink) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range maps.Keys(s.objs) {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return out
}

func (s *sink) lists() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resets
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func node(name, cidr string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func claim() control.Claim {
	return control.Claim{
		Node: "here", Instance: "0123", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		Facts: control.NodeFacts{
			Underlays: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, UDPPorts: []uint16{8472, 8473}, VNI: 1, IngressVNI: 2,
			VTEPMAC: frame.MAC{2, 0, 0, 0, 0, 1},
		},
	}
}

// bed is a source that runs.
type bed struct {
	*kube.Source
	api  *kubetest.Server
	sink *sink
	done chan error
	stop func()
}

func start(t *testing.T, api *kubetest.Server, change func(*kube.Config)) *bed {
	t.Helper()
	cfg := kube.Config{APIServer: api.URL(), Node: "here", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	s, err := kube.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{Source: s, api: api, sink: &sink{}, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.done <- s.Run(ctx, b.sink) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		<-b.done
		s.Close()
	})
	t.Cleanup(b.stop)
	return b
}

// A node finds its pod CIDRs in its Node, says there how it is reached, and hears what
// there is and what changes.
func TestANodeInACluster(t *testing.T) {
	api := kubetest.New(t)
	api.Put("nodes", node("there", "10.244.1.0/24"))
	api.Put("services", service("web", "10.96.0.10"))
	b := start(t, api, nil)
	claimed := make(chan control.Claim, 1)
	go func() {
		got, err := b.ClaimNode(t.Context(), claim())
		if err != nil {
			t.Error(err)
		}
		claimed <- got
	}()
	eventually(t, "the node is asked for", func() bool { return api.Requests("get", "nodes") > 0 })
	n := node("here", "")
	n.Spec.PodCIDRs = nil
	api.Put("nodes", n) // the kubelet; then the controller
	api.Put("nodes", node("here", "10.244.0.0/24"))
	if got := <-claimed; fmt.Sprint(got.PodCIDRs) != "[10.244.0.0/24]" {
		t.Fatalf("claim of %v", got.PodCIDRs)
	}
	published := func() map[string]any {
		m, _ := api.Get("nodes", "", "here")["metadata"].(map[string]any)
		a, _ := m["annotations"].(map[string]any)
		return a
	}
	want := map[string]any{
		"vswitch.dev/instance": "0123", "vswitch.dev/underlay": "192.0.2.1", "vswitch.dev/udp-ports": "8472,8473", "vswitch.dev/vni": "1",
		"vswitch.dev/vtep-mac": "02:00:00:00:00:01", "vswitch.dev/ingress-vni": "2",
		"flannel.alpha.coreos.com/backend-type":        "vxlan",
		"flannel.alpha.coreos.com/backend-data":        `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`,
		"flannel.alpha.coreos.com/public-ip":           "192.0.2.1",
		"flannel.alpha.coreos.com/kube-subnet-manager": "true",
	}
	if got := published(); !maps.Equal(got, want) {
		t.Errorf("published %v, want %v", got, want)
	}
	eventually(t, "all is heard", func() bool {
		return slices.Equal(b.sink.keys(), []string{"Node here", "Node there", "Service default/web"})
	})

	api.Put("services", service("new", "10.96.0.11"))
	api.Delete("services", "default", "web")
	eventually(t, "changes are heard", func() bool {
		return slices.Equal(b.sink.keys(), []string{"Node here", "Node there", "Service default/new"})
	})

	// Deleted and made anew, with the same CIDRs: what it says is written again.
	api.Delete("nodes", "", "here")
	eventually(t, "the node is gone", func() bool { return b.sink.get(control.Key{Kind: control.KindNode, Name: "here"}) == nil })
	api.Put("nodes", node("here", "10.244.0.0/24"))
	eventually(t, "the tunnel is published again", func() bool { return maps.Equal(published(), want) })

	// With others it is the end.
	api.Delete("nodes", "", "here")
	api.Put("nodes", node("here", "10.244.7.0/24"))
	select {
	case err := <-b.done:
		b.done <- err
		if err == nil || t.Context().Err() != nil {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the node goes on with pod CIDRs that are no longer its own")
	}
}
