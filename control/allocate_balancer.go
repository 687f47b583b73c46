package control

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// sameClass holds a LoadBalancer to its class, as Kubernetes does: two owners
// would both believe its addresses theirs.
func (a *ServiceAllocator) sameClass(s, old *corev1.Service) error {
	if old == nil || s.Spec.Type != corev1.ServiceTypeLoadBalancer || old.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	name := func(c *string) string {
		if c == nil {
			return "none"
		}
		return *c
	}
	if was, is := name(old.Spec.LoadBalancerClass), name(s.Spec.LoadBalancerClass); was != is {
		return invalidField(s, "spec.loadBalancerClass", "%s, but it was %s; want the same as long as it is a LoadBalancer", is, was)
	}
	return nil
}

// balancerIPs gives a LoadBalancer of our class one address of each of its
// families that there is a range of, and what it has it keeps. Of another class
// the addresses are those its owner wrote last.
func (a *ServiceAllocator) balancerIPs(s, old *corev1.Service) error {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		s.Status = corev1.ServiceStatus{}
		return nil
	}
	if !ours(&s.Spec) {
		if old != nil && len(s.Status.LoadBalancer.Ingress) == 0 {
			s.Status = old.Status
		}
		return nil
	}
	s.Status = corev1.ServiceStatus{}
	var want netip.Addr
	if s.Spec.LoadBalancerIP != "" {
		var err error
		if want, err = a.wantedBalancer(s); err != nil {
			return err
		}
	}
	vip := corev1.LoadBalancerIPModeVIP
	for _, f := range s.Spec.IPFamilies {
		ip, ok := a.balancerIP(s, old, f, want)
		if !ok {
			if r := rangeOf(a.lb, f); r != nil {
				return fmt.Errorf("Service %s/%s: no free address in --lb-cidr %s", s.Namespace, s.Name, r)
			}
			continue
		}
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip.String(), IPMode: &vip})
	}
	return nil
}

// wantedBalancer judges the address that a service asks for.
func (a *ServiceAllocator) wantedBalancer(s *corev1.Service) (netip.Addr, error) {
	const field = "spec.loadBalancerIP"
	ip, err := netip.ParseAddr(s.Spec.LoadBalancerIP)
	if err != nil {
		return ip, invalidField(s, field, "%q is not an IP address", s.Spec.LoadBalancerIP)
	}
	if len(a.lb) == 0 {
		return ip, invalidField(s, field, "%s, but there is no --lb-cidr: a LoadBalancer is served at the nodes' addresses; leave it out", ip)
	}
	r := rangeOf(a.lb, familyOf(ip))
	switch {
	case r == nil || !r.Contains(ip):
		return ip, invalidField(s, field, "%s is outside --lb-cidr %v", ip, a.lb)
	case ip == AddrAt(*r, 0) || ip.Is4() && ip == AddrAt(*r, Size(*r)-1):
		return ip, invalidField(s, field, "%s is the network or broadcast address of %s", ip, r)
	}
	if !slices.Contains(s.Spec.IPFamilies, familyOf(ip)) {
		return ip, invalidField(s, field, "%s, but the service's families are %v", ip, s.Spec.IPFamilies)
	}
	if holder, ok := a.ips[ip]; ok {
		return ip, &ConflictError{What: "loadBalancerIP " + ip.String(), Holder: "Service " + holder, Advice: "choose another, or leave it open"}
	}
	return ip, nil
}

// balancerIP is the address wanted, or the one it had, or a free one. What it had
// it keeps whatever the ranges are now: clients know it.
func (a *ServiceAllocator) balancerIP(s, old *corev1.Service, f corev1.IPFamily, want netip.Addr) (netip.Addr, bool) {
	if want.IsValid() && familyOf(want) == f {
		return want, true
	}
	if old != nil && ours(&old.Spec) {
		for _, in := range old.Status.LoadBalancer.Ingress {
			if ip, err := netip.ParseAddr(in.IP); err == nil && familyOf(ip) == f {
				if _, taken := a.ips[ip]; !taken {
					return ip, true
				}
			}
		}
	}
	if r := rangeOf(a.lb, f); r != nil {
		return a.pickIn(*r, s)
	}
	return netip.Addr{}, false
}
