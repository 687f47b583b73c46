package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// compileService makes the ports of one service, a Service for each port and
// family, with their endpoints.
func (o *Objects) compileService(e *serviceEntry) []*Service {
	s := e.record
	if isHeadless(&s.Spec) || s.Spec.Type == corev1.ServiceTypeExternalName || othersToServe(s) {
		return nil
	}
	// An etcd of ours has refused these; Kubernetes takes any annotation.
	v := invalid{key: KeyOf(s)}
	v.annotations(s)
	if wrong := (*InvalidError)(nil); errors.As(v.err, &wrong) {
		e.problem(KeyOf(s), "%s: %s", wrong.Field, wrong.Reason)
	}
	var out []*Service
	common := commonOf(s)
	balancers, externals := o.outsideAddrs(e)
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		proto, ok := protocolOf(p.Protocol)
		if !ok {
			continue
		}
		if proto == SCTP && (p.NodePort != 0 || len(balancers)+len(externals) > 0) {
			e.problem(KeyOf(s), "port %q: clients outside the cluster can't reach an SCTP port: the host has no sockets of ours for it; pods can", p.Name)
		}
		for _, ip := range s.Spec.ClusterIPs {
			vip, err := netip.ParseAddr(ip)
			if err != nil {
				continue
			}
			c := common // a copy of its own
			c.ServiceKey = ServiceKey{s.Namespace, s.Name, p.Name, vip.Is6()}
			c.Protocol, c.VIPs, c.Port, c.NodePort = proto, []netip.Addr{vip}, uint16(p.Port), uint16(p.NodePort)
			c.LoadBalancerIPs, c.ExternalIPs = ofFamily(balancers, vip.Is6()), ofFamily(externals, vip.Is6())
			if proto != TCP {
				c.Proxy = nil // nothing of theirs can be terminated
			}
			if slices.ContainsFunc(out, func(o *Service) bool { return o.ServiceKey == c.ServiceKey }) {
				e.problem(KeyOf(s), "port %q: not programmed: another port or address of the service is as it is", p.Name)
				continue
			}
			c.Endpoints = o.endpoints(e, p, &c)
			if proto == UDP && (p.NodePort != 0 || len(c.LoadBalancerIPs)+len(c.ExternalIPs) > 0) {
				o.checkReach(e, &c)
			}
			out = append(out, &c)
		}
	}
	return out
}

// checkReach tells of endpoints of a UDP port that clients outside are sent to and can't
// reach: programs on a node's own network. The gateway makes connections to those, and a
// datagram has none.
func (o *Objects) checkReach(e *serviceEntry, s *Service) {
	for i := range s.Endpoints {
		if a := s.Endpoints[i].Addr; o.atNode(a) {
			e.problem(KeyOf(e.record), "port %q: clients outside the cluster don't reach %v over UDP: it is a node's own address, and only pods' are reached; pods reach both", s.PortName, a)
		}
	}
}

// othersToServe reports whether a label says that a service is not for the cluster's
// proxy: it has a name in DNS, and its addresses are somebody else's business.
func othersToServe(s *corev1.Service) bool {
	_, proxy := s.Labels[LabelProxyName]
	_, headless := s.Labels[corev1.IsHeadlessService]
	return proxy || headless
}

// nobody is a range that no client is in.
var nobody = netip.PrefixFrom(netip.IPv4Unspecified(), 32)

// commonOf is what all ports of a service have alike.
func commonOf(s *corev1.Service) Service {
	c := Service{
		ExternalLocal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Proxy:         proxyOf(s),
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		c.InternalLocal = *p == corev1.ServiceInternalTrafficPolicyLocal
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		c.Affinity = time.Duration(affinitySeconds(&s.Spec)) * time.Second
	}
	if needsHealthCheck(&s.Spec) {
		c.HealthCheckNodePort = uint16(s.Spec.HealthCheckNodePort)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, text := range s.Spec.LoadBalancerSourceRanges {
			p, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil {
				p = nobody // or a list of nothing readable would let everybody in
			}
			c.SourceRanges = append(c.SourceRanges, p.Masked())
		}
	}
	return c
}

// proxyOf reads the annotations; nil: flows are rewritten.
func proxyOf(s *corev1.Service) *Proxy {
	if s.Annotations[AnnotationMode] != ModeProxy {
		return nil
	}
	return &Proxy{ProtocolV2: s.Annotations[AnnotationProxyProtocol] == ProxyProtocolV2}
}

// needsHealthCheck: a load balancer that hands packets to nodes must know which
// have endpoints of their own only where no other will do.
func needsHealthCheck(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func ofFamily(addrs []netip.Addr, ipv6 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.Is6() == ipv6 {
			out = append(out, a)
		}
	}
	return out
}

func (e *serviceEntry) problem(key Key, format string, args ...any) {
	e.problems = append(e.problems, Problem{key, fmt.Sprintf(format, args...)})
}
