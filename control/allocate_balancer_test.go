package control

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

var lbRanges = prefixes("198.51.100.0/29", "2001:db8:1::/125")

// ingress is what a service's status says, as "address address".
func ingress(s *corev1.Service) string {
	var out []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	return strings.Join(out, " ")
}

func mustAllocate(t *testing.T, a *ServiceAllocator, s *corev1.Service) *corev1.Service {
	t.Helper()
	if err := a.Allocate(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A LoadBalancer gets an address of each of its families, keeps it through
// updates, and gives it back.
func TestLoadBalancersGetKeepAndReturnTheirAddresses(t *testing.T) {
	a := NewServiceAllocator(dualRanges, lbRanges, nil)
	const both = "{type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}"
	first := mustAllocate(t, a, serviceOf(t, "web", both))
	in := first.Status.LoadBalancer.Ingress
	if len(in) != 2 || *in[0].IPMode != corev1.LoadBalancerIPModeVIP || first.Spec.Ports[0].NodePort == 0 {
		t.Fatalf("ingress %+v, node port %d; want an address of each family and a port", in, first.Spec.Ports[0].NodePort)
	}
	if again := mustAllocate(t, a, serviceOf(t, "web", both)); ingress(again) != ingress(first) {
		t.Errorf("after an update %q, want %q", ingress(again), ingress(first))
	}
	none := NewServiceAllocator(dualRanges, nil, []*corev1.Service{first})
	if again := mustAllocate(t, none, serviceOf(t, "web", both)); ingress(again) != ingress(first) {
		t.Errorf("without --lb-cidr %q, want %q as before", ingress(again), ingress(first))
	}
	var full error
	for i := range 8 {
		if err := a.Allocate(serviceOf(t, "more-"+string(rune('a'+i)), "{type: LoadBalancer, ports: [{port: 80}]}")); err != nil {
			full = err
		}
	}
	if full == nil || !strings.Contains(full.Error(), "no free address in --lb-cidr 198.51.100.0/29") {
		t.Errorf("eight more in a range of six: %v", full)
	}
	mustAllocate(t, a, serviceOf(t, "web", "{ports: [{port: 80}]}"))
	if got := mustAllocate(t, a, serviceOf(t, "heir", "{type: LoadBalancer, ports: [{port: 80}]}")); ingress(got) != strings.Fields(ingress(first))[0] {
		t.Errorf("the next got %q, want what was given back of %q", ingress(got), ingress(first))
	}
}

func TestLoadBalancerAddressesAskedFor(t *testing.T) {
	a := NewServiceAllocator(dualRanges, lbRanges, nil)
	got := mustAllocate(t, a, serviceOf(t, "web", "{type: LoadBalancer, loadBalancerIP: 198.51.100.3, ports: [{port: 80}]}"))
	if ingress(got) != "198.51.100.3" {
		t.Errorf("got %q, want what was asked for", ingress(got))
	}
	for _, tt := range []struct{ name, spec, want string }{
		{"another's", "{type: LoadBalancer, loadBalancerIP: 198.51.100.3, ports: [{port: 80}]}", "loadBalancerIP 198.51.100.3 is held by Service default/web"},
		{"one outside", "{type: LoadBalancer, loadBalancerIP: 192.0.2.3, ports: [{port: 80}]}", "192.0.2.3 is outside --lb-cidr"},
		{"the broadcast address", "{type: LoadBalancer, loadBalancerIP: 198.51.100.7, ports: [{port: 80}]}", "network or broadcast"},
		{"one of another family", "{type: LoadBalancer, loadBalancerIP: '2001:db8:1::3', ports: [{port: 80}]}", "but the service's families are [IPv4]"},
	} {
		if err := a.Allocate(serviceOf(t, "other", tt.spec)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	err := NewServiceAllocator(dualRanges, nil, nil).Allocate(serviceOf(t, "web", "{type: LoadBalancer, loadBalancerIP: 198.51.100.3, ports: [{port: 80}]}"))
	if err == nil || !strings.Contains(err.Error(), "served at the nodes' addresses") {
		t.Errorf("without --lb-cidr: %v", err)
	}
}

// Another class is its owner's: it gets nothing, and what its owner wrote stays
// when somebody else writes the rest.
func TestLoadBalancersOfAnotherClassAreLeftAlone(t *testing.T) {
	a := NewServiceAllocator(dualRanges, lbRanges, nil)
	const spec = "{type: LoadBalancer, loadBalancerClass: example.com/lb, ports: [{port: 80}]}"
	if s := mustAllocate(t, a, serviceOf(t, "web", spec)); ingress(s) != "" {
		t.Errorf("got %q, want nothing", ingress(s))
	}
	mustAllocate(t, a, serviceOf(t, "web", spec+"\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}"))
	if s := mustAllocate(t, a, serviceOf(t, "web", spec)); ingress(s) != "203.0.113.1" {
		t.Errorf("kept %q, want its owner's address", ingress(s))
	}
	var invalid *InvalidError
	if err := a.Allocate(serviceOf(t, "web", "{type: LoadBalancer, ports: [{port: 80}]}")); !errors.As(err, &invalid) || invalid.Field != "spec.loadBalancerClass" {
		t.Errorf("a change of class: %v, want a refusal", err)
	}
	mine := mustAllocate(t, a, serviceOf(t, "mine", "{type: LoadBalancer, loadBalancerClass: "+LoadBalancerClass+", ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.2}]}}"))
	if got := ingress(mine); !strings.HasPrefix(got, "198.51.100.") {
		t.Errorf("our own class has %q, want an address of the range and not the user's", got)
	}
}

func TestHealthCheckPortsAreNodePorts(t *testing.T) {
	a := NewServiceAllocator(dualRanges, nil, nil)
	const local = "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}"
	first := mustAllocate(t, a, serviceOf(t, "web", local))
	n := first.Spec.HealthCheckNodePort
	if n < NodePortMin || n > NodePortMax || n == first.Spec.Ports[0].NodePort {
		t.Fatalf("health check port %d beside node port %d", n, first.Spec.Ports[0].NodePort)
	}
	if again := mustAllocate(t, a, serviceOf(t, "web", local)); again.Spec.HealthCheckNodePort != n {
		t.Errorf("after an update %d, want %d", again.Spec.HealthCheckNodePort, n)
	}
	other := serviceOf(t, "other", "{type: NodePort, ports: [{port: 80}]}")
	other.Spec.Ports[0].NodePort = n
	var conflict *ConflictError
	if err := a.Allocate(other); !errors.As(err, &conflict) || conflict.Holder != "Service default/web" {
		t.Errorf("its number as a node port: %v, want a conflict", err)
	}
	if s := mustAllocate(t, a, serviceOf(t, "web", "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}")); s.Spec.HealthCheckNodePort != 0 || s.Spec.Ports[0].NodePort != 0 {
		t.Errorf("has ports %d and %d, want none", s.Spec.HealthCheckNodePort, s.Spec.Ports[0].NodePort)
	}
}

func TestExternalNamesGetNothing(t *testing.T) {
	a := NewServiceAllocator(dualRanges, lbRanges, nil)
	mustAllocate(t, a, serviceOf(t, "db", "{type: LoadBalancer, ports: [{port: 80}]}"))
	s := mustAllocate(t, a, serviceOf(t, "db", "{type: ExternalName, externalName: db.example.com, ports: [{port: 80}]}"))
	if s.Spec.ClusterIP != "" || s.Spec.IPFamilies != nil || ingress(s) != "" || s.Spec.Ports[0].NodePort != 0 {
		t.Errorf("has %+v, %q", s.Spec, ingress(s))
	}
}
