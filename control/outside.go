package control

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// LoadBalancerClass is the spec.loadBalancerClass of services that vswitch gives
// an address to; so it does where none is named. The addresses of any other class
// are its owner's business.
const LoadBalancerClass = "vswitch.dev/lb"

// outsideAddrs are the addresses of a service for clients outside the cluster:
// of its load balancers and its external ones, sorted. Who can make a service
// could otherwise take any address away from the pods (CVE-2020-8554), so what
// belongs to somebody else is left out and named.
func (o *Objects) outsideAddrs(e *serviceEntry) (balancers, externals []netip.Addr) {
	s := e.record
	e.outside = s.Spec.Type == corev1.ServiceTypeLoadBalancer || len(s.Spec.ExternalIPs) > 0
	take := func(addrs *[]netip.Addr, field, text string, refuse func(netip.Addr) error) {
		a, err := netip.ParseAddr(text)
		if err == nil {
			err = refuse(a)
		} else {
			err = fmt.Errorf("%q is not an IP address", text)
		}
		if err != nil {
			e.problem(KeyOf(s), "%s: not programmed: %v", field, err)
		} else if !slices.Contains(balancers, a) && !slices.Contains(externals, a) {
			*addrs = append(*addrs, a)
		}
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for i, in := range s.Status.LoadBalancer.Ingress {
			if in.IP == "" || in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
				continue // a proxy in front: its packets come to node ports or pods
			}
			refuse := o.refuseBalancer
			if !ours(&s.Spec) {
				refuse = o.refuseForeignBalancer
			}
			take(&balancers, fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), in.IP, refuse)
		}
		if o.self.NodesBalance && ours(&s.Spec) && len(s.Status.LoadBalancer.Ingress) == 0 {
			balancers = o.nodeAddrs()
		}
	}
	if len(s.Spec.ExternalIPs) > 0 && !o.self.AllowExternalIPs {
		e.problem(KeyOf(s), "spec.externalIPs: not programmed: whoever makes a service could take any address from the pods; --allow-external-ips permits it")
		return sorted(balancers), nil
	}
	for i, text := range s.Spec.ExternalIPs {
		take(&externals, fmt.Sprintf("spec.externalIPs[%d]", i), text, o.refuseExternal)
	}
	return sorted(balancers), sorted(externals)
}

// ours reports whether vswitch gives a LoadBalancer its address.
func ours(s *corev1.ServiceSpec) bool {
	return s.LoadBalancerClass == nil || *s.LoadBalancerClass == LoadBalancerClass
}

// nodeAddrs are the addresses of all nodes that live and run vswitch, at which a
// LoadBalancer is served that has none of its own.
func (o *Objects) nodeAddrs() []netip.Addr {
	addrs := slices.Clone(o.self.Underlays)
	for name, e := range o.nodes {
		if e.err != nil || e.view.instance == "" || name == o.self.Node || !o.Live(name) {
			continue
		}
		for _, d := range e.view.devices {
			addrs = append(addrs, d.underlays...)
		}
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return refuseSpecial(a) != nil })
	return slices.Compact(sorted(addrs))
}

// refuseExternal refuses an address that a user wants for a service and that is
// somebody else's.
func (o *Objects) refuseExternal(a netip.Addr) error {
	if slices.Contains(o.self.Underlays, a) {
		return fmt.Errorf("%s is this node's own address; want one that nobody has", a)
	}
	if name, ok := o.underlays[a]; ok {
		return fmt.Errorf("%s is node %s's own address; want one that nobody has", a, name)
	}
	if err := o.refuseOurs(a); err != nil {
		return err
	}
	return o.refuseOthers(a)
}

// refuseOurs refuses an address that the store gives to LoadBalancers of our class.
func (o *Objects) refuseOurs(a netip.Addr) error {
	for _, p := range o.self.LoadBalancerCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%s lies in --lb-cidr %s, which is for load balancers of class %s; want one that nobody has", a, p, LoadBalancerClass)
		}
	}
	return nil
}

// atNode reports whether an address is one at which a node is reached.
func (o *Objects) atNode(a netip.Addr) bool {
	_, ok := o.underlays[a]
	return ok || slices.Contains(o.self.Underlays, a)
}

// refuseBalancer does so for what a load balancer's owner gave. That may be a
// node's address: it is how those work that have none to give, and then only the
// service's port is taken.
func (o *Objects) refuseBalancer(a netip.Addr) error {
	if o.atNode(a) {
		return refuseSpecial(a)
	}
	return o.refuseOthers(a)
}

// refuseForeignBalancer does so for one of another class.
func (o *Objects) refuseForeignBalancer(a netip.Addr) error {
	if err := o.refuseOurs(a); err != nil {
		return err
	}
	return o.refuseBalancer(a)
}

func (o *Objects) refuseOthers(a netip.Addr) error {
	if err := refuseSpecial(a); err != nil {
		return err
	}
	for _, p := range o.self.ServiceCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%s lies in the service CIDR %s; want one that nobody has", a, p)
		}
	}
	for _, p := range o.self.ClusterCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%s lies in the cluster CIDR %s, which is for pods; want one that nobody has", a, p)
		}
	}
	if o.podPrefixes.Contains(a) {
		return fmt.Errorf("%s lies in a node's pod CIDR; want one that nobody has", a)
	}
	if o.self.IsNameServer != nil && o.self.IsNameServer(a) {
		return fmt.Errorf("%s is a name server's; want one that nobody has", a)
	}
	return nil
}

// refuseSpecial refuses addresses that mean something else on every host.
func refuseSpecial(a netip.Addr) error {
	what := ""
	switch u := a.Unmap(); {
	case a.Zone() != "":
		what = "an address with a zone"
	case a.Is4In6():
		what = "an IPv4 address in IPv6 form"
	case u.IsUnspecified():
		what = "the unspecified address"
	case u.IsLoopback():
		what = "a loopback address"
	case u.IsLinkLocalUnicast():
		what = "a link-local address"
	case u.IsMulticast():
		what = "a multicast address"
	case u == broadcast:
		what = "the broadcast address"
	default:
		return nil
	}
	return fmt.Errorf("%s is %s; want a unicast address that nobody has", a, what)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func sorted(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
