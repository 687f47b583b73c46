package control

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// NodePorts are allocated from this range, as Kubernetes does by default.
const (
	NodePortMin = 30000
	NodePortMax = 32767
)

// ServiceAllocator fills in what a Service leaves open: families, ClusterIPs,
// NodePorts, and the addresses of a LoadBalancer. It is pure: given the services that exist it decides what another
// gets, and the store makes that true in one transaction or asks again.
//
// A search starts at a hash of the service's name and takes the next free value.
// So a value given up is not the next one handed out, while a service that is
// deleted and made again tends to get its own back. The first addresses of a
// range are left to those who ask for them (KEP-3070: at most 256, a sixteenth of
// the range, at least 16).
type ServiceAllocator struct {
	ranges []netip.Prefix // at most one of each family; the first is the default family
	lb     []netip.Prefix // of LoadBalancers' addresses; none: they are served at the nodes'
	held   map[string]*corev1.Service
	ips    map[netip.Addr]string // service "namespace/name" that holds it
	ports  map[nodePort]string
}

type nodePort struct {
	proto Protocol
	port  int32
}

// NewServiceAllocator starts from the services that exist. balancers are the
// ranges LoadBalancers get their addresses from, at most one of each family.
func NewServiceAllocator(ranges, balancers []netip.Prefix, existing []*corev1.Service) *ServiceAllocator {
	a := &ServiceAllocator{
		ranges: ranges, lb: balancers, held: map[string]*corev1.Service{},
		ips: map[netip.Addr]string{}, ports: map[nodePort]string{},
	}
	for _, s := range existing {
		a.hold(s)
	}
	return a
}

// Allocate completes s, which replaces the service of its name if there is one,
// and keeps what it holds. Values s asks for are honoured or refused with a
// *ConflictError that names the holder or an *InvalidError; what it leaves open it
// keeps from its predecessor, or gets. After an error the allocator is as before.
func (a *ServiceAllocator) Allocate(s *corev1.Service) error {
	name := s.Namespace + "/" + s.Name
	old := a.held[name]
	a.release(old)
	err := a.sameClass(s, old)
	if err == nil && s.Spec.Type != corev1.ServiceTypeExternalName {
		err = a.families(s, old)
		if err == nil {
			err = a.clusterIPs(s, old)
		}
	}
	if err == nil {
		err = a.balancerIPs(s, old)
	}
	if err == nil {
		err = a.nodePorts(s, old)
	}
	if err != nil {
		if old != nil {
			a.hold(old)
		}
		return err
	}
	a.hold(s)
	return nil
}

// Existing returns the service of that name as last held, nil if none.
func (a *ServiceAllocator) Existing(namespace, name string) *corev1.Service {
	return a.held[namespace+"/"+name]
}

func (a *ServiceAllocator) hold(s *corev1.Service) {
	name := s.Namespace + "/" + s.Name
	a.held[name] = s
	for ip := range serviceAddrs(s) {
		a.ips[ip] = name
	}
	for p := range serviceNodePorts(s) {
		a.ports[p] = name
	}
}

func (a *ServiceAllocator) release(s *corev1.Service) {
	if s == nil {
		return
	}
	name := s.Namespace + "/" + s.Name
	delete(a.held, name)
	for ip := range serviceAddrs(s) {
		if a.ips[ip] == name {
			delete(a.ips, ip)
		}
	}
	for p := range serviceNodePorts(s) {
		if a.ports[p] == name {
			delete(a.ports, p)
		}
	}
}

// families settles ipFamilies and ipFamilyPolicy: what is asked for, or implied by
// addresses asked for, or was before, or the default family.
func (a *ServiceAllocator) families(s, old *corev1.Service) error {
	spec := &s.Spec
	want := slices.Clone(spec.IPFamilies)
	if !isHeadless(spec) {
		for i, ip := range spec.ClusterIPs {
			if addr, err := netip.ParseAddr(ip); err == nil && i >= len(want) {
				want = append(want, familyOf(addr))
			}
		}
	}
	dual := len(want) > 1
	if spec.IPFamilyPolicy != nil {
		dual = *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack
	} else if old != nil && len(want) == 0 {
		want = slices.Clone(old.Spec.IPFamilies)
		spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
		dual = len(want) > 1
	}
	if len(want) == 0 && len(a.ranges) > 0 {
		want = append(want, familyOf(a.ranges[0].Addr()))
	}
	if dual {
		for _, r := range a.ranges {
			if f := familyOf(r.Addr()); !slices.Contains(want, f) {
				want = append(want, f)
			}
		}
	}
	for i, f := range want {
		if rangeOf(a.ranges, f) == nil {
			return invalidField(s, fmt.Sprintf("spec.ipFamilies[%d]", i), "%s, but the service CIDR is %v", f, a.ranges)
		}
	}
	if p := spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack && len(want) < 2 {
		return invalidField(s, "spec.ipFamilyPolicy", "RequireDualStack, but the service CIDR is %v", a.ranges)
	}
	spec.IPFamilies = want
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(want) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
	return nil
}

func (a *ServiceAllocator) clusterIPs(s, old *corev1.Service) error {
	spec := &s.Spec
	if isHeadless(spec) {
		spec.ClusterIP, spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		return nil
	}
	var out []string
	for i, f := range spec.IPFamilies {
		if i < len(spec.ClusterIPs) {
			if err := a.checkIP(s, fmt.Sprintf("spec.clusterIPs[%d]", i), spec.ClusterIPs[i]); err != nil {
				return err
			}
			out = append(out, spec.ClusterIPs[i])
			continue
		}
		ip, err := a.pickIP(s, old, f)
		if err != nil {
			return err
		}
		out = append(out, ip.String())
	}
	spec.ClusterIPs = out
	spec.ClusterIP = out[0]
	return nil
}

func (a *ServiceAllocator) checkIP(s *corev1.Service, field, text string) error {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return invalidField(s, field, "%q is not an IP address", text)
	}
	r := rangeOf(a.ranges, familyOf(ip))
	switch {
	case r == nil || !r.Contains(ip):
		return invalidField(s, field, "%s is outside the service CIDR %v", ip, a.ranges)
	case ip == AddrAt(*r, 0) || ip.Is4() && ip == AddrAt(*r, Size(*r)-1):
		return invalidField(s, field, "%s is the network or broadcast address of %s", ip, r)
	}
	if holder, ok := a.ips[ip]; ok {
		return &ConflictError{What: "clusterIP " + ip.String(), Holder: "Service " + holder, Advice: "choose another, or leave it open"}
	}
	return nil
}

func (a *ServiceAllocator) pickIP(s, old *corev1.Service, f corev1.IPFamily) (netip.Addr, error) {
	r := *rangeOf(a.ranges, f)
	if old != nil {
		for ip := range serviceAddrs(old) {
			if _, taken := a.ips[ip]; !taken && familyOf(ip) == f && r.Contains(ip) {
				return ip, nil
			}
		}
	}
	ip, ok := a.pickIn(r, s)
	if !ok {
		return ip, fmt.Errorf("Service %s/%s: no free ClusterIP in %s", s.Namespace, s.Name, r)
	}
	return ip, nil
}

// pickIn is a free address in r for s.
func (a *ServiceAllocator) pickIn(r netip.Prefix, s *corev1.Service) (netip.Addr, bool) {
	size := Size(r)
	end := size
	if r.Addr().Is4() {
		end-- // broadcast
	}
	start := uint64(1)
	if band := min(max(16, size/16), 256); band < end {
		start = band
	}
	free := func(n uint64) bool { _, taken := a.ips[AddrAt(r, n)]; return !taken }
	n, ok := search(start, end, identity(s.Namespace, s.Name), free)
	if !ok {
		n, ok = search(1, start, 0, free) // the reserved band, when nothing else is left
	}
	if !ok {
		return netip.Addr{}, false
	}
	return AddrAt(r, n), true
}

func rangeOf(ranges []netip.Prefix, f corev1.IPFamily) *netip.Prefix {
	for i := range ranges {
		if familyOf(ranges[i].Addr()) == f {
			return &ranges[i]
		}
	}
	return nil
}

// search returns the first free number in [low, high), beginning at a place that
// seed decides and going round once.
func search(low, high, seed uint64, free func(uint64) bool) (uint64, bool) {
	if high <= low {
		return 0, false
	}
	n := high - low
	for i := range n {
		if v := low + (seed%n+i)%n; free(v) {
			return v, true
		}
	}
	return 0, false
}

// serviceAddrs are the addresses that a service was allocated.
func serviceAddrs(s *corev1.Service) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for _, ip := range s.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil && !yield(a) {
				return
			}
		}
		if !ours(&s.Spec) {
			return
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if a, err := netip.ParseAddr(in.IP); err == nil && !yield(a) {
				return
			}
		}
	}
}

// serviceNodePorts are its ports at the nodes, that of its health check among them.
func serviceNodePorts(s *corev1.Service) func(func(nodePort) bool) {
	return func(yield func(nodePort) bool) {
		if n := s.Spec.HealthCheckNodePort; n != 0 && !yield(nodePort{TCP, n}) {
			return
		}
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if proto, ok := protocolOf(p.Protocol); ok && p.NodePort != 0 && !yield(nodePort{proto, p.NodePort}) {
				return
			}
		}
	}
}

func invalidField(o Object, field, format string, args ...any) error {
	return &InvalidError{Object: KeyOf(o), Field: field, Reason: fmt.Sprintf(format, args...)}
}
