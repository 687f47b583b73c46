package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

func (s *server) apply(st *Store, yaml string) []control.Object {
	s.t.Helper()
	out, err := st.Apply(s.context(), decode(s.t, yaml))
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func TestApplyAllocatesAndKeeps(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	yaml := serviceYAML("web", "  type: NodePort\n  ipFamilyPolicy: PreferDualStack\n")
	first := s.apply(st, yaml)[0].(*corev1.Service)
	if len(first.Spec.ClusterIPs) != 2 || first.Spec.Ports[0].NodePort < control.NodePortMin {
		t.Fatalf("allocated %v and %d, want an address of each family and a node port", first.Spec.ClusterIPs, first.Spec.Ports[0].NodePort)
	}
	again := s.apply(st, yaml)[0].(*corev1.Service)
	if again.ResourceVersion != first.ResourceVersion || again.UID != first.UID {
		t.Errorf("the same again is version %s of %s, want %s of %s: unchanged", again.ResourceVersion, again.UID, first.ResourceVersion, first.UID)
	}
	changed := s.apply(st, serviceYAML("web", "  type: NodePort\n  ipFamilyPolicy: PreferDualStack\n  externalTrafficPolicy: Local\n"))[0].(*corev1.Service)
	if changed.ResourceVersion == first.ResourceVersion || !slices.Equal(changed.Spec.ClusterIPs, first.Spec.ClusterIPs) ||
		changed.Spec.Ports[0].NodePort != first.Spec.Ports[0].NodePort || changed.UID != first.UID {
		t.Errorf("after a change %v and %d, want the addresses and the port to stay", changed.Spec.ClusterIPs, changed.Spec.Ports[0].NodePort)
	}
	list, err := st.List(s.context(), control.KindService)
	if err != nil || len(list) != 1 || list[0].GetResourceVersion() != changed.ResourceVersion {
		t.Errorf("list %v, %v; want the service as changed", list, err)
	}
}

func TestWhatIsHeldIsRefusedByTheHoldersName(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	s.apply(st, serviceYAML("web", "  clusterIP: 10.96.1.1\n"))
	_, err := st.Apply(s.context(), decode(t, serviceYAML("thief", "  clusterIP: 10.96.1.1\n")))
	var conflict *control.ConflictError
	if !errors.As(err, &conflict) {
		t.Fatalf("%v, want a *ConflictError", err)
	}
	wantError(t, err, "10.96.1.1", "Service default/web")
	if err := st.Delete(s.context(), control.KindService, "default", "web"); err != nil {
		t.Fatal(err)
	}
	s.apply(st, serviceYAML("thief", "  clusterIP: 10.96.1.1\n"))
	if err := st.Delete(s.context(), control.KindService, "default", "web"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("second deletion: %v, want ErrNotFound", err)
	}
}

// TestABadObjectLeavesNothingOfItsFileBehind applies files whose last object the
// store refuses, by what it holds or by what comes before in the file.
func TestABadObjectLeavesNothingOfItsFileBehind(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	s.apply(st, serviceYAML("web", "  clusterIP: 10.96.1.1\n"))
	good := serviceYAML("good", "")
	for name, bad := range map[string]string{
		"an address outside the range":    serviceYAML("bad", "  clusterIP: 10.200.0.1\n"),
		"an address that is held":         serviceYAML("bad", "  clusterIP: 10.96.1.1\n"),
		"an address twice in the file":    serviceYAML("one", "  clusterIP: 10.96.1.9\n") + "\n---\n" + serviceYAML("two", "  clusterIP: 10.96.1.9\n"),
		"a node's CIDR twice in the file": fmt.Sprintf(flannelNode, "k1", "10.244.9.0/24") + "\n---\n" + fmt.Sprintf(flannelNode, "k2", "10.244.9.0/25"),
		"an endpoint at a service's address": `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: ["10.96.1.1"]}]
`,
	} {
		if out, err := st.Apply(s.context(), decode(t, good+"\n---\n"+bad)); err == nil || len(out) > 0 {
			t.Errorf("%s: %d applied, err %v", name, len(out), err)
		}
		for _, kind := range []control.Kind{control.KindService, control.KindNode, control.KindEndpointSlice} {
			list, err := st.List(s.context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range list {
				if o.GetName() != "web" {
					t.Errorf("%s: left %v behind", name, control.KeyOf(o))
				}
			}
		}
	}
}

// manyServices is a file of services that leave their addresses open.
func manyServices(n int) string {
	var file strings.Builder
	for i := range n {
		file.WriteString(serviceYAML(fmt.Sprintf("s%d", i), "") + "\n---\n")
	}
	return file.String()
}

// The embedded store takes a file of thousands in one transaction.
func TestALongFileIsAppliedAsOne(t *testing.T) {
	s := newServer(t)
	st := s.store("a", func(c *Config) { c.Timeout = 20 * time.Second })
	out := s.apply(st, manyServices(2000))
	for _, o := range out {
		if v := o.GetResourceVersion(); v != out[0].GetResourceVersion() {
			t.Fatalf("%s is at version %s, the first at %s: want one transaction", o.GetName(), v, out[0].GetResourceVersion())
		}
	}
	if len(out) != 2000 || st.narrow.Load() {
		t.Errorf("%d applied, narrow %v", len(out), st.narrow.Load())
	}
}

// A store that takes less gets less at a time. Of what ended in the middle the rest is applied
// when all is applied again.
func TestALongFileAtAStoreOfDefaultLimits(t *testing.T) {
	st, err := New(Config{
		Endpoints: []string{plainEtcd(t)}, Node: "a", Timeout: 20 * time.Second,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	services := 2*narrow.objects + 7
	all := decode(t, manyServices(services))
	begun, err := st.Apply(t.Context(), all[:narrow.objects+50])
	if err != nil || !st.narrow.Load() {
		t.Fatalf("%v; narrow: %v", err, st.narrow.Load())
	}
	out, err := st.Apply(t.Context(), all)
	if err != nil || len(out) != services {
		t.Fatalf("%d applied, %v; want %d", len(out), err, services)
	}
	versions := map[string]bool{}
	for i, o := range out {
		versions[o.GetResourceVersion()] = true
		if i < len(begun) && o.GetResourceVersion() != begun[i].GetResourceVersion() {
			t.Errorf("%s was written again", o.GetName())
		}
	}
	if len(versions) < 3 || len(versions) > 5 {
		t.Errorf("%d transactions, want few", len(versions))
	}
}

// plainEtcd is a store with the limits that etcd has by default.
func plainEtcd(t *testing.T) (endpoint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "etcd") // short: a socket's path goes below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.LogOutputs = dir+"/data", "panic", []string{os.DevNull}
	nobody := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.ListenPeerUrls, c.AdvertisePeerUrls, c.InitialCluster = nil, []url.URL{nobody}, c.Name+"="+nobody.String()
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: dir + "/s"}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return c.ListenClientUrls[0].String()
}

// TestALongFileIsAppliedInOrder applies more objects than one transaction takes,
// the last of them another form of the first.
func TestALongFileIsAppliedInOrder(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	st.narrow.Store(true)
	services := 2*narrow.objects + 7
	out := s.apply(st, manyServices(services)+serviceYAML("s0", "  externalTrafficPolicy: Local\n  type: NodePort\n"))
	if len(out) != services+1 {
		t.Fatalf("%d applied, want %d", len(out), services+1)
	}
	first, last := out[0].(*corev1.Service), out[services].(*corev1.Service)
	if first.UID != last.UID || first.ResourceVersion == last.ResourceVersion || last.Spec.Type != corev1.ServiceTypeNodePort {
		t.Errorf("the first service is %s at version %s, and as changed later %s at %s", first.UID, first.ResourceVersion, last.UID, last.ResourceVersion)
	}
	list, err := st.List(s.context(), control.KindService)
	if err != nil || len(list) != services {
		t.Fatalf("%d stored, %v; want %d", len(list), err, services)
	}
	addrs := map[string]bool{}
	for _, o := range list {
		addrs[o.(*corev1.Service).Spec.ClusterIP] = true
	}
	if len(addrs) != services {
		t.Errorf("%d addresses for %d services", len(addrs), services)
	}
}

// Nodes that apply at the same time get different addresses and ports.
func TestConcurrentAllocationsAreDistinct(t *testing.T) {
	s := newServer(t)
	const nodes, each = 3, 6
	var mu sync.Mutex
	holder := map[string]string{}
	var wg sync.WaitGroup
	for n := range nodes {
		st := s.store(fmt.Sprintf("node-%d", n))
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("s%d-%d", n, i)
				objs, err := st.Apply(s.context(), decode(t, serviceYAML(name, "  type: NodePort\n  ipFamilyPolicy: RequireDualStack\n")))
				if err != nil {
					t.Error(err)
					return
				}
				svc := objs[0].(*corev1.Service)
				mu.Lock()
				for _, v := range append(svc.Spec.ClusterIPs, fmt.Sprint(svc.Spec.Ports[0].NodePort)) {
					if other, ok := holder[v]; ok {
						t.Errorf("%s is %s's and %s's", v, other, name)
					}
					holder[v] = name
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if want := nodes * each * 3; len(holder) != want {
		t.Errorf("%d values allocated, want %d", len(holder), want)
	}
}

const flannelNode = `
apiVersion: v1
kind: Node
metadata:
  name: %s
  annotations:
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}'
    flannel.alpha.coreos.com/public-ip: 192.0.2.7
spec: {podCIDRs: [%s]}
`

func TestForeignNodesTakeTheirPrefixes(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	s.apply(st, fmt.Sprintf(flannelNode, "flannel", "10.244.0.0/24"))
	if got := fmt.Sprint(s.claim(st, "one").PodCIDRs[0]); got != "10.244.1.0/24" {
		t.Errorf("claim %s, want 10.244.1.0/24: the first is the flannel node's", got)
	}
	for _, tt := range []struct{ name, node, cidr, want string }{
		{"a prefix inside another node's", "x", "10.244.1.128/25", "Node a"},
		{"a prefix around another node's", "x", "10.244.0.0/16", "Node "},
		{"the service CIDR", "x", "10.96.4.0/24", "the service CIDR"},
		{"the name of a vswitch node", "a", "10.9.0.0/24", "a node that vswitch runs"},
		{"the network that the nodes are in", "x", "192.0.2.0/24", "the address of Node"},
	} {
		_, err := st.Apply(s.context(), decode(t, fmt.Sprintf(flannelNode, tt.node, tt.cidr)))
		if err == nil {
			t.Errorf("%s was accepted", tt.name)
			continue
		}
		wantError(t, err, tt.want)
	}
	if err := st.Delete(s.context(), control.KindNode, "", "flannel"); err != nil {
		t.Error(err)
	}
}

// Case 32, the half of it that validation alone can't see.
func TestEndpointsAtServicesAreRefused(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	s.claim(st, "one")
	for addr, want := range map[string]string{"10.96.3.4": "service address", "10.96.0.0": "service address"} {
		_, err := st.Apply(s.context(), decode(t, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x, labels: {kubernetes.io/service-name: x}}
addressType: IPv4
endpoints: [{addresses: ["%s"]}]
ports: [{port: 80}]
`, addr)))
		wantError(t, err, addr, want, "endpoints[0].addresses[0]")
	}
}

func TestAStoreThatIsAwaySaysSo(t *testing.T) {
	s := newServer(t)
	st := s.store("a")
	s.stop()
	for name, err := range map[string]error{
		"apply":  second(st.Apply(s.context(), decode(t, serviceYAML("web", "")))),
		"delete": st.Delete(s.context(), control.KindService, "default", "web"),
		"list":   second(st.List(s.context(), control.KindService)),
	} {
		if !errors.Is(err, control.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
}

// A full store (its quota used up) is one that does not take writes now (case 57).
func TestAFullStoreSaysSo(t *testing.T) {
	st, err := New(Config{Endpoints: []string{"http://192.0.2.1:2379"}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	err = st.wrap(rpctypes.ErrNoSpace)
	if !errors.Is(err, control.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	wantError(t, err, "full", "quota")
}

func second[T any](_ T, err error) error { return err }

func TestEndpointURLsAreChecked(t *testing.T) {
	for _, urls := range [][]string{nil, {"127.0.0.1:2379"}, {"ftp://h:1"}, {"http://h:1", "https://h:1"}, {"unix://"}} {
		if _, err := New(Config{Endpoints: urls}); err == nil {
			t.Errorf("%q: no error", urls)
		}
	}
}
