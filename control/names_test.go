package control

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"vswitch/internal/dns"
)

// namesOf is what DNS says of these objects.
func namesOf(objs ...Object) (*Names, *Objects) {
	o := NewObjects(testSelf)
	o.names = newNames()
	for _, obj := range objs {
		o.Put(obj)
	}
	o.State()
	return o.names, o
}

// showNames writes a service's names in one line.
func showNames(s *dns.Service) string {
	if s == nil {
		return "none"
	}
	ports := func(ps []dns.Port) string {
		var out string
		for _, p := range ps {
			out += fmt.Sprintf(" %s/%s:%d", p.Name, p.Protocol, p.Number)
		}
		return out
	}
	var b strings.Builder
	fmt.Fprint(&b, s.Addrs, ports(s.Ports))
	if s.Headless {
		b.WriteString(" headless")
	}
	for _, e := range s.Endpoints {
		fmt.Fprintf(&b, " (%v %s%s)", e.Addr, e.Hostname, ports(e.Ports))
	}
	if s.ExternalName != "" {
		fmt.Fprintf(&b, " -> %s", s.ExternalName)
	}
	return b.String()
}

func TestNamesOfServices(t *testing.T) {
	pod := func(f string) Object { return podOf(t, strings.Fields(f)) }
	slice := func(yaml string) Object {
		return decodeMust(t, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n"+yaml)[0]
	}
	headless := func(more string) Object {
		return serviceOf(t, "web", "{selector: {app: web}, clusterIP: None, ports: [{name: http, port: 80, targetPort: 8080}]"+more+"}")
	}
	withHost := pod("a here 10.244.1.2,fd00:10:244::2 app=web").(*corev1.Pod)
	withHost.Spec.Hostname, withHost.Spec.Subdomain = "web-0", "web"
	elsewhere := withHost.DeepCopy()
	elsewhere.Spec.Subdomain = "other"
	external := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com."},
	}
	for _, c := range []struct {
		name string
		objs []Object
		want string
	}{
		{"a service with addresses and ports; one without a name has none", []Object{
			serviceOf(t, "web", `{clusterIPs: [10.96.0.1, "fd00:10:96::1"], ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}`),
		}, "[10.96.0.1 fd00:10:96::1] http/tcp:80 dns/udp:53"},
		{"a port without a name", []Object{serviceOf(t, "web", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}")}, "[10.96.0.1]"},
		{"headless: pods, with the port they listen on", []Object{headless(""), pod("a here 10.244.1.2 app=web"), pod("b here 10.244.1.3 app=db")},
			"[] headless (10.244.1.2 10-244-1-2 http/tcp:8080)"},
		{"headless: a pod with a hostname, both families", []Object{headless(""), withHost},
			"[] headless (10.244.1.2 web-0 http/tcp:8080) (fd00:10:244::2 web-0 http/tcp:8080)"},
		{"headless: a pod with a hostname for another service", []Object{headless(""), elsewhere},
			"[] headless (10.244.1.2 10-244-1-2 http/tcp:8080) (fd00:10:244::2 fd00-0010-0244-0000-0000-0000-0000-0002 http/tcp:8080)"},
		{"headless: pods that are not ready or terminate have no name", []Object{
			headless(""), pod("a here 10.244.1.2 app=web notready"), pod("b here 10.244.1.3 app=web terminating"),
		}, "[] headless"},
		{"headless: unless they are published", []Object{
			headless(", publishNotReadyAddresses: true"), pod("a here 10.244.1.2 app=web notready"), pod("b here 10.244.1.3 app=web terminating"),
		}, "[] headless (10.244.1.2 10-244-1-2 http/tcp:8080) (10.244.1.3 10-244-1-3 http/tcp:8080)"},
		{"headless: a pod of a node that is away has no name", []Object{
			headless(""), nodeOf(t, []string{"away", "192.0.2.9", "10.244.9.0/24"}), pod("a away 10.244.9.2 app=web"),
		}, "[] headless"},
		{"headless: a slice's endpoints, with their hostnames and ports", []Object{headless(""), slice(
			`addressType: IPv4
ports: [{name: http, port: 81}, {name: other, port: 82}]
endpoints: [{addresses: [198.51.100.1], hostname: web-7}, {addresses: [198.51.100.2], conditions: {ready: false}}]`)},
			"[] headless (198.51.100.1 web-7 http/tcp:81)"},
		{"headless: without ports", []Object{
			serviceOf(t, "web", "{selector: {app: web}, clusterIP: None}"), pod("a here 10.244.1.2 app=web"),
		}, "[] headless (10.244.1.2 10-244-1-2)"},
		{"an external name", []Object{external}, "[] -> www.example.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, _ := namesOf(c.objs...)
			s := n.Service("default", "web")
			if got := showNames(s); got != c.want {
				t.Fatalf("got  %s\nwant %s", got, c.want)
			}
			for _, a := range s.Addrs {
				if b := n.Behind(a); len(b) != 1 || b[0].Service != s || b[0].Hostname != "" {
					t.Errorf("behind %v: %v", a, b)
				}
			}
			for _, e := range s.Endpoints {
				if b := n.Behind(e.Addr); len(b) != 1 || b[0].Service != s || b[0].Hostname != e.Hostname {
					t.Errorf("behind %v: %v", e.Addr, b)
				}
			}
		})
	}
}

// Addresses that would lead a client to itself or into a node get no name
// (CVE-2021-25737), whoever let them into the store.
func TestAddressesThatGetNoName(t *testing.T) {
	svc := serviceOf(t, "web", "{clusterIP: None}")
	s := decodeMust(t, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.1]}, {addresses: [10.96.0.9]}]
`)[0]
	n, o := namesOf(svc, s)
	if got := showNames(n.Service("default", "web")); got != "[] headless (198.51.100.1 198-51-100-1)" {
		t.Errorf("got %s", got)
	}
	if p := o.Problems(); len(p) != 1 || !strings.Contains(p[0].Reason, "10.96.0.9") {
		t.Errorf("problems %v", p)
	}
}

// After any changes the names are those of a set that saw the objects at once.
func TestNamesAfterChangesAreThoseOfAFreshSet(t *testing.T) {
	var pool []Object
	for _, ip := range []string{"10.96.0.1", "10.96.0.2", "None"} {
		for _, name := range []string{"web", "db"} {
			pool = append(pool, serviceOf(t, name, "{selector: {app: web}, clusterIP: "+ip+", ports: [{name: a, port: 80}]}"))
		}
	}
	for _, f := range []string{"a here 10.244.1.2 app=web", "a here 10.244.1.3 app=web", "b here 10.244.1.2 app=web notready", "b away 10.244.1.4 app=web"} {
		pool = append(pool, podOf(t, strings.Fields(f)))
	}
	pool = append(pool, nodeOf(t, []string{"away", "192.0.2.9", "10.244.9.0/24"}), lease("away"))
	rapid.Check(t, func(rt *rapid.T) {
		names, set := namesOf()
		model := map[Key]Object{}
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			obj := rapid.SampledFrom(pool).Draw(rt, "object")
			if rapid.Bool().Draw(rt, "put") {
				set.Put(obj)
				model[KeyOf(obj)] = obj
			} else {
				set.Delete(KeyOf(obj))
				delete(model, KeyOf(obj))
			}
			if rapid.Bool().Draw(rt, "look") {
				set.State()
				set.trimNames()
			}
		}
		set.State()
		set.trimNames()
		want, _ := namesOf(slices.Collect(maps.Values(model))...)
		if got, want := allNames(names), allNames(want); got != want {
			rt.Fatalf("got\n%swant\n%s", got, want)
		}
	})
}

// allNames writes down all that the zone can say.
func allNames(n *Names) string {
	var lines []string
	for _, s := range n.services {
		lines = append(lines, fmt.Sprintf("%s/%s %s", s.Namespace, s.Name, showNames(s)))
	}
	for a, names := range n.behind {
		for _, b := range names {
			lines = append(lines, fmt.Sprintf("%v is %s %s/%s", a, b.Hostname, b.Service.Namespace, b.Service.Name))
			if n.services[objectName{b.Service.Namespace, b.Service.Name}] != b.Service {
				lines = append(lines, fmt.Sprintf("%v belongs to a service of the past", a))
			}
		}
	}
	for ns, count := range n.spaces {
		lines = append(lines, fmt.Sprintf("namespace %s has %d", ns, count))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// Names follow the controller's sources; a list that wipes most services is doubted
// for as long as the dataplane doubts it.
func TestNamesOfServicesThatAreHeldStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t, simple(t, "kept", "10.96.0.9"))
		synctest.Wait()
		if c.Names().Service("default", "kept") == nil {
			t.Error("the snapshot's service has no name")
		}
		var all []Object
		for i := range 10 {
			all = append(all, simple(t, fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.1.%d", i)))
		}
		c.Reset(all)
		time.Sleep(time.Hour) // it wipes the whole snapshot
		synctest.Wait()
		if c.Names().Service("default", "kept") != nil || c.Names().Service("default", "s0") == nil {
			t.Error("names are not those of the list")
		}
		c.Update(nil, []Key{KeyOf(all[0])})
		synctest.Wait()
		if c.Names().Service("default", "s0") != nil {
			t.Error("a deleted service keeps its name")
		}
		c.Reset(nil)
		synctest.Wait()
		if !c.dp.has("s1") || c.Names().Service("default", "s1") == nil {
			t.Error("an empty list took a service or its name at once")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.dp.has("s1") || c.Names().Service("default", "s1") != nil || c.Names().HasNamespace("default") {
			t.Error("the names outlive the services")
		}
	})
}

// BenchmarkNameLookup is one question among 10,000 services.
func BenchmarkNameLookup(b *testing.B) {
	o := NewObjects(testSelf)
	o.names = newNames()
	o.Reset(bigSet(b), time.Unix(0, 0))
	o.State()
	a := netip.MustParseAddr("10.96.0.77")
	for b.Loop() {
		if o.names.Service("default", "s5000") == nil || len(o.names.Behind(a)) != 1 {
			b.Fatal("not found")
		}
	}
}
