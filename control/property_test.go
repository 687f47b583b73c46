package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// The set keeps what it compiled and recompiles what changed. After any changes
// its state is that of a set which saw the same objects for the first time.
func TestStateAfterChangesIsThatOfAFreshSet(t *testing.T) {
	services := decodeMust(t, `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, trafficDistribution: PreferSameZone, clusterIPs: [10.96.0.1, "fd00:10:96::1"], ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web, tier: front}, clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIPs: [10.96.0.2], ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}], selector: {tier: front}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.2], nodeName: a}, {addresses: [198.51.100.1], nodeName: b}]
ports: [{port: 5432}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.2], hints: {forZones: [{name: x}]}}, {addresses: [192.0.2.3], nodeName: here}]
ports: [{name: b, port: 5432}, {port: 5}]
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: LoadBalancer, selector: {app: web}, clusterIPs: [10.96.0.3], externalIPs: [198.51.100.8, 192.0.2.3], trafficDistribution: PreferSameNode, ports: [{port: 80, nodePort: 30000}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {type: LoadBalancer, loadBalancerClass: example.com/lb, clusterIPs: [10.96.0.3], externalIPs: [198.51.100.8, 10.244.2.9], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 198.51.100.9}]}}
---
apiVersion: v1
kind: Service
metadata: {name: also}
spec: {type: LoadBalancer, clusterIPs: [10.96.0.4], externalIPs: [198.51.100.9], ports: [{port: 80, nodePort: 30000}]}
---
apiVersion: v1
kind: Service
metadata: {name: also, creationTimestamp: "2025-01-01T00:00:00Z"}
spec: {type: LoadBalancer, clusterIPs: [10.96.0.4], externalIPs: [198.51.100.9], ports: [{port: 80, nodePort: 30000}]}
---
apiVersion: v1
kind: Service
metadata: {name: also}
spec: {externalTrafficPolicy: Local, internalTrafficPolicy: Local, selector: {tier: front}, clusterIPs: [10.96.0.3], externalIPs: [198.51.100.8], ports: [{port: 80}]}
`)
	self := testSelf
	self.Zone, self.NodesBalance, self.AllowExternalIPs = "x", true, true
	rapid.Check(t, func(rt *rapid.T) {
		set := NewObjects(self)
		model := map[Key]Object{}
		var told State                     // what the deltas came to
		if rapid.Bool().Draw(rt, "full") { // begin with much of what can be
			for i, o := range services {
				if i%2 == 0 {
					set.Put(o)
					model[KeyOf(o)] = o
				}
			}
			for i, node := range []string{"a", "b", "c"} {
				for _, o := range []Object{
					lease(node), nodeOf(t, []string{node, fmt.Sprintf("192.0.2.%d", 4+i), fmt.Sprintf("10.244.%d.0/24", 4+i), "zone=x"}),
					podOf(t, []string{fmt.Sprintf("p%d", 2+i), node, fmt.Sprintf("10.244.1.%d", 2+i), "app=web", "tier=front"}),
				} {
					set.Put(o)
					model[KeyOf(o)] = o
				}
			}
		}
		put := func(o Object) {
			set.Put(o)
			model[KeyOf(o)] = o
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			node := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "node")
			switch rapid.IntRange(0, 7).Draw(rt, "step") {
			case 0:
				put(services[rapid.IntRange(0, len(services)-1).Draw(rt, "object")])
			case 1:
				n := rapid.IntRange(2, 4).Draw(rt, "n")
				put(podOf(t, []string{fmt.Sprintf("p%d", n), node, fmt.Sprintf("10.244.1.%d,fd00:10:244::%d", n, n),
					rapid.SampledFrom([]string{"app=web", "app=db", "tier=front"}).Draw(rt, "label"),
					rapid.SampledFrom([]string{"tier=front", "port.vswitch.dev/http=8080", "terminating", "notready"}).Draw(rt, "more")}))
			case 2:
				put(nodeOf(t, []string{node, fmt.Sprintf("192.0.2.%d", rapid.IntRange(2, 3).Draw(rt, "underlay")),
					fmt.Sprintf("10.244.%d.0/24", rapid.IntRange(1, 3).Draw(rt, "prefix")),
					rapid.SampledFrom([]string{"zone=x", "zone=y", "zone="}).Draw(rt, "zone")}))
			case 3:
				put(lease(node))
			default:
				if len(model) > 0 {
					keys := sortedKeys(model)
					k := rapid.SampledFrom(keys).Draw(rt, "key")
					set.Delete(k)
					delete(model, k)
				}
			}
			if rapid.IntRange(0, 9).Draw(rt, "list") == 0 { // leases run out without a grace
				set.Reset(values(model), time.Unix(0, 0))
				set.Advance(time.Unix(0, 0).Add(LeaseGrace))
			}
			if rapid.Bool().Draw(rt, "look") { // what is compiled when, must not matter
				told = applied(rt, told, set.Delta())
			}
		}
		told = applied(rt, told, set.Delta())
		if d := set.Delta(); !d.Empty() {
			rt.Fatalf("told twice: %v", d)
		}
		sameState(rt, told, set.State())
		fresh := NewObjects(self)
		for _, o := range model {
			fresh.Put(o)
		}
		got, want := set.State(), fresh.State()
		if g, w := showTunnels(got.Tunnels), showTunnels(want.Tunnels); g != w {
			rt.Fatalf("tunnels\n%swant\n%s", g, w)
		}
		if g, w := showServices(got.Services), showServices(want.Services); g != w {
			rt.Fatalf("services\n%swant\n%s", g, w)
		}
		if !reflect.DeepEqual(set.Problems(), fresh.Problems()) {
			rt.Fatalf("problems %v, want %v", set.Problems(), fresh.Problems())
		}
		if !reflect.DeepEqual(set.All(), fresh.All()) {
			rt.Fatalf("objects %v, want %v", set.All(), fresh.All())
		}
	})
}

// applied is a state after a delta, which must say nothing that is so already.
func applied(t *rapid.T, s State, d Delta) State {
	dp := newStrictDataplane()
	for _, c := range diff(State{}, s) {
		mustDo(t, dp, c)
	}
	for _, tun := range d.PutTunnels {
		if was, ok := dp.tunnels[tun.TunnelKey]; ok && was.equal(&tun) {
			t.Fatalf("tunnel %v is told again", tun.TunnelKey)
		}
		dp.tunnels[tun.TunnelKey] = tun
	}
	for _, k := range d.DeleteTunnels {
		if _, ok := dp.tunnels[k]; !ok {
			t.Fatalf("tunnel %v is deleted again", k)
		}
		delete(dp.tunnels, k)
	}
	for _, svc := range d.PutServices {
		if was, ok := dp.services[svc.ServiceKey]; ok && was.equal(svc) {
			t.Fatalf("service %v is told again", svc.ServiceKey)
		}
		dp.services[svc.ServiceKey] = *svc
	}
	for _, k := range d.DeleteServices {
		if _, ok := dp.services[k]; !ok {
			t.Fatalf("service %v is deleted again", k)
		}
		delete(dp.services, k)
	}
	return dp.state()
}

func decodeMust(t *testing.T, yaml string) []Object {
	t.Helper()
	objs, err := Decode([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

func sortedKeys(m map[Key]Object) []Key {
	var out []Key
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, Key.compare)
	return out
}

// anyState draws a state in which no two have the same, from few values so that
// they move between keys all the time.
func anyState(t *rapid.T) State {
	var s State
	members := holders[tunnelClaim, TunnelKey]{}
	for _, node := range []string{"a", "b", "c", "d"} {
		tun := Tunnel{
			TunnelKey: TunnelKey{node, vswitchDevice},
			Underlay:  netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 4).Draw(t, "underlay"))}),
			Ports:     []uint16{uint16(rapid.IntRange(1, 2).Draw(t, "port"))},
			Prefixes:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(1, 4).Draw(t, "prefix")), 0}), 24)},
		}
		if _, ok := members.take(tun.claims, tun.TunnelKey); ok && rapid.Bool().Draw(t, "have") {
			s.Tunnels = append(s.Tunnels, tun)
		}
	}
	fronts := holders[serviceClaim, ServiceKey]{}
	for _, name := range []string{"e", "f", "g", "h"} {
		svc := Service{
			ServiceKey: ServiceKey{Namespace: "default", Name: name}, Protocol: TCP,
			VIPs:     []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(rapid.IntRange(1, 3).Draw(t, "vip"))})},
			Port:     uint16(rapid.IntRange(1, 2).Draw(t, "port")),
			NodePort: uint16(rapid.IntRange(0, 3).Draw(t, "nodePort")),
			Affinity: time.Duration(rapid.IntRange(0, 1).Draw(t, "affinity")),
		}
		if _, ok := fronts.take(svc.claims, svc.ServiceKey); ok && rapid.Bool().Draw(t, "have") {
			s.Services = append(s.Services, svc)
		}
	}
	return s
}

// A diff applied in order to a dataplane that refuses whatever is taken leads from
// any state to any other, without a refusal; and puts only what differs.
func TestDiffLeadsFromAnyStateToAnyOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := anyState(t), anyState(t)
		dp := newStrictDataplane()
		for _, c := range diff(State{}, have) {
			mustDo(t, dp, c)
		}
		dp.calls = nil
		for _, c := range diff(have, want) {
			mustDo(t, dp, c)
		}
		sameState(t, dp.state(), want)
		if again := diff(dp.state(), want); len(again) > 0 {
			t.Fatalf("still to do: %v", again)
		}
	})
}

// What both states carry alike is cut only if it could not be helped, and ways are
// there before the services that use them.
func TestDiffTouchesOnlyWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := anyState(t), anyState(t)
		stage := 0
		for _, c := range diff(have, want) {
			for _, s := range have.Services {
				if i := slices.IndexFunc(want.Services, func(w Service) bool { return w.equal(&s) }); i >= 0 && c.key() == any(s.ServiceKey) {
					t.Fatalf("%v, though it is wanted as it is", c)
				}
			}
			next := map[Op]int{PutTunnel: 1, PutService: 2, DeleteService: 3, DeleteTunnel: 4}[c.Op]
			if c.Collides {
				next = 0
			}
			if next < stage {
				t.Fatalf("%v comes after what it should come before", c)
			}
			stage = next
		}
	})
}

func mustDo(t *rapid.T, dp Dataplane, c Change) {
	if err := do(dp, c); err != nil {
		t.Fatalf("%v: %v", c, err)
	}
}

func do(dp Dataplane, c Change) error {
	switch c.Op {
	case PutTunnel:
		return dp.PutTunnel(c.Tunnel)
	case PutService:
		return dp.PutService(c.Service)
	case DeleteService:
		return dp.DeleteService(c.Service.ServiceKey)
	}
	return dp.DeleteTunnel(c.Tunnel.TunnelKey)
}

func sameState(t *rapid.T, got, want State) {
	if g, w := showTunnels(got.Tunnels)+showServices(got.Services), showTunnels(want.Tunnels)+showServices(want.Services); g != w {
		t.Fatalf("dataplane has\n%swant\n%s", g, w)
	}
}

// deltaBetween is what Objects.Delta tells where the state goes from one to another.
func deltaBetween(from, to State) Delta {
	var d Delta
	for _, m := range match(from.Tunnels, to.Tunnels, func(t Tunnel) TunnelKey { return t.TunnelKey }, TunnelKey.compare) {
		if m.want == nil {
			d.DeleteTunnels = append(d.DeleteTunnels, m.have.TunnelKey)
		} else {
			d.PutTunnels = append(d.PutTunnels, *m.want)
		}
	}
	for _, m := range match(from.Services, to.Services, func(s Service) ServiceKey { return s.ServiceKey }, ServiceKey.compare) {
		if m.want == nil {
			d.DeleteServices = append(d.DeleteServices, m.have.ServiceKey)
		} else {
			d.PutServices = append(d.PutServices, m.want)
		}
	}
	return d
}

// believed is all that the reconciler believes to be programmed.
func (r *Reconciler) believed() State {
	var s State
	for _, it := range r.tunnels.items {
		if it.have != nil {
			s.Tunnels = append(s.Tunnels, *it.have)
		}
	}
	for _, it := range r.services.items {
		if it.have != nil {
			s.Services = append(s.Services, *it.have)
		}
	}
	slices.SortFunc(s.Tunnels, func(a, b Tunnel) int { return a.TunnelKey.compare(b.TunnelKey) })
	slices.SortFunc(s.Services, func(a, b Service) int { return a.ServiceKey.compare(b.ServiceKey) })
	return s
}

// Whatever fails, in the end the dataplane is what was wanted last; nothing is
// deleted before a full list.
func TestReconcilerConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dp := newStrictDataplane()
		r := NewReconciler(dp, ReconcilerConfig{}, discard())
		now := time.Unix(0, 0)
		rng := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		dp.failing = func(Change) bool { return rng.IntN(3) == 0 }
		synced := false
		var want State
		set := func(s State) {
			r.Want(deltaBetween(want, s))
			want = s
		}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			set(anyState(t))
			if rapid.Bool().Draw(t, "sync") {
				r.Sync(now)
				synced = true
			}
			for range rapid.IntRange(0, 3).Draw(t, "steps") {
				before := dp.state()
				if got, all := r.changes(), diff(r.believed(), want); !reflect.DeepEqual(got, all) {
					t.Fatalf("open changes %v, of all %v", got, all)
				}
				if next := r.Step(now); !next.IsZero() {
					if !next.After(now) {
						t.Fatalf("next step at %v, not after now", next.Sub(now))
					}
					now = next
				}
				if !synced {
					for _, s := range before.Services {
						if _, ok := dp.services[s.ServiceKey]; !ok && !slices.ContainsFunc(want.Services, func(w Service) bool { return w.ServiceKey == s.ServiceKey || overlap(w.claims, s.claims) }) {
							t.Fatalf("%v deleted before a full list", s.ServiceKey)
						}
					}
				}
			}
		}
		r.Sync(now)
		dp.failing = nil
		for range 100 {
			next := r.Step(now)
			if next.IsZero() {
				break
			}
			now = next
		}
		if !r.Settled() {
			t.Fatal("not settled")
		}
		sameState(t, dp.state(), want)
	})
}

func TestIdentitiesTellPodsApart(t *testing.T) {
	seen := map[uint64]string{}
	for _, parts := range [][]string{{"a", "b"}, {"ab", ""}, {"", "ab"}, {"a", "c"}, {"b", "a"}} {
		id := identity(parts...)
		if other, ok := seen[id]; ok || id == 0 {
			t.Errorf("%q and %s have identity %d", parts, other, id)
		}
		seen[id] = fmt.Sprint(parts)
	}
	a := podOf(t, []string{"p", "n", "10.0.0.1", "app=web"}).(*corev1.Pod)
	b := a.DeepCopy()
	b.Annotations[AnnotationContainerID] = "another"
	b.UID = "another"
	set := NewObjects(testSelf)
	set.Put(serviceOf(t, "web", "{selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}"))
	set.Put(a)
	first := set.State().Services[0].Endpoints[0].ID
	set.Delete(KeyOf(a))
	set.Put(b)
	if second := set.State().Services[0].Endpoints[0].ID; second == first || second == 0 {
		t.Errorf("another pod at the address has identity %d, like the first", second)
	}
}

// diff is all that turns have into want: the slow twin of what a Reconciler does by deltas.
func diff(have, want State) []Change {
	var c changes
	tunnels := map[tunnelClaim]TunnelKey{}
	for i := range want.Tunnels {
		for at := range want.Tunnels[i].claims {
			tunnels[at] = want.Tunnels[i].TunnelKey
		}
	}
	for _, m := range match(have.Tunnels, want.Tunnels, func(t Tunnel) TunnelKey { return t.TunnelKey }, TunnelKey.compare) {
		c.tunnel(m.have, m.want, func(at tunnelClaim) (TunnelKey, bool) { k, ok := tunnels[at]; return k, ok })
	}
	services := map[serviceClaim]ServiceKey{}
	for i := range want.Services {
		for at := range want.Services[i].claims {
			services[at] = want.Services[i].ServiceKey
		}
	}
	for _, m := range match(have.Services, want.Services, func(s Service) ServiceKey { return s.ServiceKey }, ServiceKey.compare) {
		c.service(m.have, m.want, func(at serviceClaim) (ServiceKey, bool) { k, ok := services[at]; return k, ok })
	}
	return c.inOrder()
}

func (c *Change) key() any {
	if c.Op == PutTunnel || c.Op == DeleteTunnel {
		return c.Tunnel.TunnelKey
	}
	return c.Service.ServiceKey
}
