package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// candidate is an endpoint that may have to yield to another record of the same
// address and port.
type candidate struct {
	Endpoint
	hints   hint
	created time.Time
}

// endpoints are the backends of one port in one family: the pods that the
// selector matches and the endpoints of the service's slices.
func (o *Objects) endpoints(e *serviceEntry, p *corev1.ServicePort, s *Service) []Endpoint {
	found := o.seen.candidates[:0]
	add := func(c candidate) {
		o.seen.node(c.Node)
		if !o.Live(c.Node) {
			c.Ready, c.Serving = false, false
		}
		found = append(found, c)
	}
	o.selected(e.record, func(pod *podRecord) {
		if pod.phase != corev1.PodRunning && !e.record.Spec.PublishNotReadyAddresses {
			return
		}
		port, ok := pod.target(p, s.Protocol)
		if !ok {
			e.problem(KeyOf(e.record), "port %q: pod %s/%s declares no %s port named %q; the label %s%s=NUMBER can",
				p.Name, pod.namespace, pod.name, s.Protocol, p.TargetPort.StrVal, LabelPortPrefix, p.TargetPort.StrVal)
			return
		}
		o.podCandidates(pod, &e.record.Spec, port, s.IPv6, add)
	})
	for _, slice := range o.sliceOf[objectName{e.record.Namespace, e.record.Name}] {
		o.sliceCandidates(e, slice, p, s, add)
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if c := a.compare(b.Endpoint); c != 0 {
			return c
		}
		return b.against(&a) // of one place the better comes first
	})
	all := slices.CompactFunc(found, func(a, b candidate) bool { return a.Addr == b.Addr && a.Port == b.Port })
	o.categorise(s, all)
	out := make([]Endpoint, len(all))
	for i := range all {
		out[i] = all[i].Endpoint
	}
	clear(found)
	if o.seen.candidates = found; cap(found) > keptRoom {
		o.seen.candidates = nil
	}
	return out
}

// against decides between two records of one address and port, positive if c is
// the better: a ready one, then the younger, as the other is a leftover of its
// predecessor. The rest makes the choice independent of the order in which the
// records are met.
func (c *candidate) against(o *candidate) int {
	return cmp.Or(compareBool(c.Ready, o.Ready), c.created.Compare(o.created), compareBool(c.Serving, o.Serving),
		compareBool(o.Terminating, c.Terminating), cmp.Compare(c.hints, o.hints), cmp.Compare(c.ID, o.ID), cmp.Compare(c.Node, o.Node))
}

func (o *Objects) podCandidates(pod *podRecord, s *corev1.ServiceSpec, port uint16, ipv6 bool, add func(candidate)) {
	for a := range pod.addrsOf(ipv6) {
		add(candidate{
			Endpoint: Endpoint{
				Addr: a, Port: port, Node: pod.node, ID: identity(string(pod.uid), pod.containerID),
				Ready:   s.PublishNotReadyAddresses || pod.ready() && !pod.terminating(),
				Serving: pod.ready(), Terminating: pod.terminating(),
			},
			hints:   o.hintsFor(s, pod.node),
			created: pod.created.Time,
		})
	}
}

// sliceCandidates takes what a slice says of one port. Addresses that would turn
// a client's packets against its own node, or in a circle, are named and left out,
// whoever let them into the store (CVE-2021-25737). A node's address is none of
// those: programs on the nodes' own network, the API server first among them, are
// endpoints, and the switch keeps clients from the tunnel. Of an endpoint's
// addresses the first counts, the others mean nothing (discovery/v1).
func (o *Objects) sliceCandidates(e *serviceEntry, s *Slice, p *corev1.ServicePort, to *Service, add func(candidate)) {
	if to.IPv6 != (s.addressType == discoveryv1.AddressTypeIPv6) {
		return
	}
	port, ok := s.port(p.Name, to.Protocol)
	if !ok {
		return
	}
	for _, ep := range s.each {
		if !ep.hasAddress() {
			continue
		}
		a, err := ep.endpointAddr(s.addressType)
		if err == nil {
			err = o.refuseEndpoint(a)
		}
		if err != nil {
			e.problem(KeyOf(s), "endpoint not programmed: %v", err)
			continue
		}
		c := candidate{Endpoint: Endpoint{Addr: a, Port: port, Node: ep.nodeName(), ID: ep.identity(s.Namespace, e.record.Name)}}
		c.Ready, c.Serving, c.Terminating = ep.conditions()
		if ep.more != nil {
			c.hints = o.hintsOf(ep.more.hints)
		}
		add(c)
	}
}

// CheckEndpoints judges the endpoints a user wrote, as State will; the error is an
// *InvalidError.
func (o *Objects) CheckEndpoints(s *discoveryv1.EndpointSlice) error {
	for i := range s.Endpoints {
		for j, text := range s.Endpoints[i].Addresses {
			a, err := endpointAddr(s.AddressType, text)
			if err == nil {
				err = o.refuseEndpoint(a)
			}
			if err != nil {
				return invalidField(s, fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), "%v", err)
			}
		}
	}
	return nil
}

// refuseEndpoint refuses addresses that would lead a flow back to a service.
func (o *Objects) refuseEndpoint(a netip.Addr) error {
	for _, p := range o.self.ServiceCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%q is a service address; want a pod's or a host's", a)
		}
	}
	for _, p := range o.self.LoadBalancerCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%q is a load balancer's address; want a pod's or a host's", a)
		}
	}
	return nil
}

// port finds the slice's port of a service port: the names agree, and both being empty
// is agreement.
func (s *Slice) port(name string, proto Protocol) (uint16, bool) {
	for i := range s.ports {
		p := &s.ports[i]
		if got, ok := protocolOf(corev1.Protocol(p.protocol)); ok && got == proto && p.name == name && p.number > 0 && p.number <= 65535 {
			return uint16(p.number), true
		}
	}
	return 0, false
}

// PodIdentity tells a pod from every other, one of the same name and address too.
func PodIdentity(p *corev1.Pod) uint64 {
	return identity(string(p.UID), p.Annotations[AnnotationContainerID])
}

// identity is a number for who is behind an address, never 0: FNV-1a of the parts,
// each ended by a zero. It stays what it is, as flows outlive the process.
func identity[T string | []byte](parts ...T) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, p := range parts {
		for i := range len(p) {
			h = (h ^ uint64(p[i])) * prime
		}
		h *= prime
	}
	return max(h, 1)
}
