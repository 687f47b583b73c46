package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// policyService makes a service of the words given: internal-local,
// external-local, node-port, balancer, external-ip.
func policyService(words string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	s.Spec.ClusterIPs, s.Spec.ClusterIP = []string{"10.96.0.1"}, "10.96.0.1"
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	local := corev1.ServiceInternalTrafficPolicyLocal
	for _, word := range strings.Fields(words) {
		switch word {
		case "internal-local":
			s.Spec.InternalTrafficPolicy = &local
		case "external-local":
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		case "node-port":
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
		case "balancer":
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
		case "external-ip":
			s.Spec.ExternalIPs = []string{"203.0.113.1"}
		default:
			panic(word)
		}
	}
	return s
}

// policyEndpoint makes an endpoint of the words given: here or there, ready (so if
// nothing else is said), terminating (and serving), draining (and not serving),
// unready, zone:NAME, node:NAME.
func policyEndpoint(number int, words string) discoveryv1.Endpoint {
	yes, no, node := true, false, "there"
	e := discoveryv1.Endpoint{
		Addresses:  []string{netip.AddrFrom4([4]byte{10, 244, 0, byte(number)}).String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		Hints:      &discoveryv1.EndpointHints{},
	}
	for _, word := range strings.Fields(words) {
		switch kind, name, _ := strings.Cut(word, ":"); kind {
		case "here":
			node = testSelf.Node
		case "there", "ready":
		case "terminating":
			e.Conditions.Ready, e.Conditions.Terminating = &no, &yes
		case "draining":
			e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating = &no, &no, &yes
		case "unready":
			e.Conditions.Ready, e.Conditions.Serving = &no, &no
		case "zone":
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: name})
		case "node":
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: name})
		default:
			panic(word)
		}
	}
	e.NodeName = &node
	return e
}

// sets are the numbers of the endpoints in the Cluster and in the Local set of the
// only service there is.
func sets(t testing.TB, zone string, service *corev1.Service, endpoints []discoveryv1.Endpoint) (cluster, local string) {
	self := testSelf
	self.Zone, self.AllowExternalIPs = zone, true
	o := NewObjects(self)
	port := int32(8080)
	o.Put(service)
	o.Put(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Port: &port}},
	})
	s := o.State().Services
	if len(s) != 1 || len(o.Problems()) != 0 {
		t.Fatalf("services %v, problems %v", s, o.Problems())
	}
	var c, l []string
	for _, e := range s[0].Endpoints {
		number := fmt.Sprint(e.Addr.As4()[3])
		if e.Cluster {
			c = append(c, number)
		}
		if e.Local {
			l = append(l, number)
		}
	}
	return strings.Join(c, " "), strings.Join(l, " ")
}

// TestPolicies is the table of who takes new connections on this node, as
// kube-proxy 1.37 has it. The node is "here", in zone a unless said otherwise.
func TestPolicies(t *testing.T) {
	tests := []struct {
		name           string
		service        string
		zone           string // empty: a; "-": not known
		endpoints      []string
		cluster, local string
	}{
		{"one ready takes all", "", "", []string{"there"}, "1", ""},
		{"ready ones anywhere", "", "", []string{"here", "there", "unready", "draining"}, "1 2", ""},
		{"no endpoint", "internal-local node-port external-local", "", nil, "", ""},
		{"none that can", "internal-local node-port external-local", "", []string{"here unready", "there draining"}, "", ""},

		{"a ready one keeps those that terminate out", "", "", []string{"there", "here terminating"}, "1", ""},
		{"with none ready those that terminate", "", "", []string{"there terminating", "here terminating", "unready", "draining"}, "1 2", ""},

		{"internal Local: this node's", "internal-local", "", []string{"here", "there"}, "", "1"},
		{"internal Local: none of another node", "internal-local", "", []string{"there", "there"}, "", ""},
		{"internal Local: one here that terminates, though another node has a ready one", "internal-local", "", []string{"here terminating", "there"}, "", "1"},
		{"internal Local: a ready one here keeps those that terminate out", "internal-local", "", []string{"here terminating", "here"}, "", "2"},
		{"internal Local at a node port: the policy Cluster outside", "internal-local node-port", "", []string{"here", "there"}, "1 2", "1"},
		{"internal Local at a load balancer", "internal-local balancer", "", []string{"here", "there"}, "1 2", "1"},
		{"internal Local at an external address", "internal-local external-ip", "", []string{"here", "there"}, "1 2", "1"},

		{"external Local that nobody outside reaches", "external-local", "", []string{"here", "there"}, "1 2", ""},
		{"external Local: pods keep the policy Cluster", "external-local node-port", "", []string{"here", "there"}, "1 2", "1"},
		{"external Local at a load balancer", "external-local balancer", "", []string{"here", "there"}, "1 2", "1"},
		{"external Local at an external address", "external-local external-ip", "", []string{"here", "there"}, "1 2", "1"},
		{"external Local: none here", "external-local node-port", "", []string{"there", "there"}, "1 2", ""},
		{"both Local", "internal-local external-local node-port", "", []string{"here", "there", "here"}, "1 2 3", "1 3"},
		{"the sets fall back apart: ready elsewhere, terminating here", "external-local node-port", "", []string{"here terminating", "there"}, "2", "1"},
		{"the sets fall back apart: nothing ready anywhere", "external-local node-port", "", []string{"here terminating", "there terminating"}, "1 2", "1"},
		{"draining ones are no fallback", "external-local node-port", "", []string{"here draining", "there terminating"}, "2", ""},

		{"zone hints: those for this zone", "", "", []string{"there zone:a", "there zone:b", "there zone:c", "here zone:a"}, "1 4", ""},
		{"zone hints: several for one endpoint", "", "", []string{"there zone:a zone:b", "there zone:b", "there zone:c zone:a"}, "1 3", ""},
		{"zone hints: this node's zone is not known", "", "-", []string{"there zone:a", "there zone:b"}, "1 2", ""},
		{"zone hints: none for this zone", "", "", []string{"there zone:b", "there zone:c"}, "1 2", ""},
		{"zone hints: one endpoint lacks them", "", "", []string{"there zone:a", "there zone:b", "there"}, "1 2 3", ""},
		{"zone hints: an endpoint that is not ready need not have them", "", "", []string{"there zone:a", "there zone:b", "there unready"}, "1", ""},
		{"zone hints: only one that is not ready for this zone", "", "", []string{"there zone:a unready", "there zone:b"}, "2", ""},
		{"zone hints don't bind the fallback", "", "", []string{"there zone:a terminating", "there zone:b terminating"}, "1 2", ""},
		{"zone hints don't bind the policy Local", "external-local node-port", "", []string{"here zone:a", "here zone:b", "there zone:a"}, "1 3", "1 2"},
		{"zone hints don't bind the internal policy Local", "internal-local node-port", "", []string{"here zone:a", "here zone:b", "there zone:b"}, "1", "1 2"},

		{"node hints: those for this node", "", "", []string{"here node:here", "there node:there"}, "1", ""},
		{"node hints are for where the client is, not the endpoint", "", "", []string{"here node:there", "there node:here"}, "2", ""},
		{"node hints: none for this node", "", "", []string{"there node:there", "there node:other"}, "1 2", ""},
		{"node hints: none for this node, the zone's then", "", "", []string{"there node:there zone:a", "there node:other zone:b"}, "1", ""},
		{"node hints: one endpoint lacks them, the zone's then", "", "", []string{"here node:here zone:b", "there zone:a"}, "2", ""},
		{"node hints come before the zone's", "", "", []string{"here node:here zone:b", "there node:there zone:a"}, "1", ""},
		{"node hints: one that terminates here is none", "", "", []string{"here node:here terminating", "there node:there"}, "2", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var es []discoveryv1.Endpoint
			for i, words := range tt.endpoints {
				es = append(es, policyEndpoint(i+1, words))
			}
			zone := "a"
			if tt.zone != "" {
				zone = strings.TrimPrefix(tt.zone, "-")
			}
			cluster, local := sets(t, zone, policyService(tt.service), es)
			if cluster != tt.cluster || local != tt.local {
				t.Errorf("cluster set %q, local set %q; want %q and %q", cluster, local, tt.cluster, tt.local)
			}
		})
	}
}

// Every combination of policies, ways in and two endpoints in every condition and
// with every hint, against the rules said one by one.
func TestEveryCombinationOfPolicies(t *testing.T) {
	var kinds []string
	for _, place := range []string{"here", "there"} {
		for _, condition := range []string{"ready", "terminating", "draining", "unready"} {
			for _, hints := range []string{"", "zone:a", "zone:b", "node:here", "node:there zone:a"} {
				kinds = append(kinds, place+" "+condition+" "+hints)
			}
		}
	}
	for _, internal := range []string{"", "internal-local "} {
		for _, external := range []string{"", "external-local "} {
			for _, way := range []string{"", "node-port", "balancer", "external-ip"} {
				for i, one := range kinds {
					for _, two := range kinds[i:] {
						words := []string{one, two}
						wantCluster, wantLocal := expectedSets(internal != "", external != "", way != "", words)
						cluster, local := sets(t, "a", policyService(internal+external+way),
							[]discoveryv1.Endpoint{policyEndpoint(1, one), policyEndpoint(2, two)})
						if cluster != wantCluster || local != wantLocal {
							t.Fatalf("%s%s%s with %q: cluster set %q, local set %q; want %q and %q",
								internal, external, way, words, cluster, local, wantCluster, wantLocal)
						}
					}
				}
			}
		}
	}
}

// expectedSets says the rules one by one, over the words of the endpoints.
func expectedSets(internalLocal, externalLocal, outside bool, endpoints []string) (cluster, local string) {
	where := func(among []int, words ...string) (out []int) {
		for _, n := range among {
			has := strings.Fields(endpoints[n-1])
			if !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(has, w) }) {
				out = append(out, n)
			}
		}
		return out
	}
	hinted := func(among []int, kind string) bool { // all of them
		return !slices.ContainsFunc(among, func(n int) bool { return !strings.Contains(endpoints[n-1], kind+":") })
	}
	firstOf := func(choices ...[]int) string {
		for _, c := range choices {
			if len(c) > 0 {
				return strings.Trim(fmt.Sprint(c), "[]")
			}
		}
		return ""
	}
	all := make([]int, len(endpoints))
	for i := range all {
		all[i] = i + 1
	}
	ready := where(all, "ready")
	if outside || !internalLocal {
		var near [][]int
		if hinted(ready, "node") {
			near = append(near, where(ready, "node:here"))
		}
		if hinted(ready, "zone") {
			near = append(near, where(ready, "zone:a"))
		}
		cluster = firstOf(append(near, ready, where(all, "terminating"))...)
	}
	if internalLocal || externalLocal && outside {
		local = firstOf(where(ready, "here"), where(all, "here", "terminating"))
	}
	return cluster, local
}

// Kubernetes lets any annotation pass: one that asks for what there is not is told, and
// the service is otherwise as it is.
func TestAnUnknownModeIsTold(t *testing.T) {
	o := NewObjects(testSelf)
	s := policyService("")
	s.Annotations = map[string]string{AnnotationMode: "magic"}
	o.Put(s)
	if got := o.State().Services; len(got) != 1 || got[0].Proxy != nil {
		t.Errorf("services: %+v", got)
	}
	problems := o.Problems()
	if len(problems) != 1 || problems[0].Object != KeyOf(s) || !strings.Contains(problems[0].Reason, `[vswitch/mode]: "magic" is not known`) {
		t.Errorf("problems: %v", problems)
	}
}
