package control

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// compileNodes makes the tunnels to every other node. A pod prefix belongs to one
// node, as does an underlay address and port: what loses is left out and named, as
// a prefix given to the wrong node would let it speak for the other's pods. This
// node comes first, then those that live: of a machine that was set up anew under
// another name the former record stands for a day. Then vswitch nodes, whose claims
// the store has checked, then the younger record.
func (o *Objects) compileNodes() {
	o.tunnels, o.tunnelProblems, o.underlays = nil, nil, map[netip.Addr]string{}
	problem := func(node, format string, args ...any) {
		o.tunnelProblems = append(o.tunnelProblems, Problem{Key{Kind: KindNode, Name: node}, fmt.Sprintf(format, args...)})
	}
	members := holders[tunnelClaim, TunnelKey]{}
	var taken bart.Lite
	for _, p := range o.self.ServiceCIDRs {
		taken.Insert(p.Masked())
	}
	order := slices.SortedFunc(maps.Keys(o.nodes), func(a, b string) int {
		x, y := o.nodes[a], o.nodes[b]
		return cmp.Or(
			compareBool(b == o.self.Node, a == o.self.Node),
			compareBool(o.Live(b), o.Live(a)),
			compareBool(y.view.instance != "", x.view.instance != ""),
			y.record.CreationTimestamp.Compare(x.record.CreationTimestamp.Time),
			cmp.Compare(a, b))
	})
	for _, name := range order {
		e := o.nodes[name]
		if e.err != nil {
			problem(name, "%v", e.err)
			continue
		}
		for _, d := range e.view.devices {
			for _, a := range d.underlays {
				if other, ok := o.underlays[a]; !ok || name < other {
					o.underlays[a] = name
				}
			}
		}
		free := map[netip.Prefix]bool{}
		for _, p := range e.view.prefixes {
			if free[p] = !taken.OverlapsPrefix(p); !free[p] {
				problem(name, "pod prefix %s overlaps another node's or the service CIDR", p)
			}
		}
		for p, ok := range free {
			if ok {
				taken.Insert(p)
			}
		}
		if name == o.self.Node {
			continue
		}
		tunnels, problems := e.view.tunnels(&o.self)
		for _, p := range problems {
			problem(name, "%s", p)
		}
		for _, t := range tunnels {
			t.Prefixes = slices.DeleteFunc(slices.Clone(t.Prefixes), func(p netip.Prefix) bool { return !free[p] })
			if holder, ok := members.take(t.claims, t.TunnelKey); !ok {
				problem(name, "its underlay address and port are those of %s", holder)
			} else if len(t.Prefixes) > 0 {
				o.tunnels = append(o.tunnels, t)
			}
		}
	}
	slices.SortFunc(o.tunnels, func(a, b Tunnel) int { return a.TunnelKey.compare(b.TunnelKey) })
}

// holders says by whom something that only one can have is held.
type holders[C, K comparable] map[C]K

// take gives key all of its claims, or none and the name of a holder.
func (h holders[C, K]) take(claims func(func(C) bool), key K) (holder K, ok bool) {
	for c := range claims {
		if k, taken := h[c]; taken {
			return k, false
		}
	}
	for c := range claims {
		h[c] = key
	}
	return key, true
}

// dropDoubles leaves out services that have what another has already. The store
// lets no two have the same address or port; what comes from elsewhere may.
func (o *Objects) dropDoubles(services []Service) []Service {
	o.doubles = nil
	taken := make(holders[serviceClaim, ServiceKey], len(services))
	return slices.DeleteFunc(services, func(s Service) bool {
		holder, ok := taken.take(s.claims, s.ServiceKey)
		if !ok {
			key := Key{KindService, s.Namespace, s.Name}
			o.doubles = append(o.doubles, Problem{key, fmt.Sprintf("port %q: its address or node port is that of %s", s.PortName, holder)})
		}
		return !ok
	})
}

// compileService makes the ports of one service, a Service for each port and
// family, with their endpoints.
func (o *Objects) compileService(e *serviceEntry) {
	e.compiled, e.problems, e.nodes = nil, nil, map[string]bool{}
	s := e.record
	if isHeadless(&s.Spec) {
		return
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		proto, ok := protocolOf(p.Protocol)
		if !ok {
			continue
		}
		for _, ip := range s.Spec.ClusterIPs {
			vip, err := netip.ParseAddr(ip)
			if err != nil {
				continue
			}
			c := Service{
				ServiceKey: ServiceKey{s.Namespace, s.Name, p.Name, vip.Is6()},
				Protocol:   proto, VIPs: []netip.Addr{vip}, Port: uint16(p.Port), NodePort: uint16(p.NodePort),
				ExternalLocal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
			}
			if pol := s.Spec.InternalTrafficPolicy; pol != nil {
				c.InternalLocal = *pol == corev1.ServiceInternalTrafficPolicyLocal
			}
			if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
				c.Affinity = time.Duration(affinitySeconds(&s.Spec)) * time.Second
			}
			c.Endpoints = o.endpoints(e, p, proto, vip.Is6())
			e.compiled = append(e.compiled, c)
		}
	}
}

// candidate is an endpoint that may have to yield to another record of the same
// address and port.
type candidate struct {
	Endpoint
	created time.Time
}

// endpoints are the backends of one port in one family: the pods that the
// selector matches and the endpoints of the service's slices.
func (o *Objects) endpoints(e *serviceEntry, p *corev1.ServicePort, proto Protocol, ipv6 bool) []Endpoint {
	found := map[netip.AddrPort]candidate{}
	add := func(c candidate) {
		e.nodes[c.Node] = true
		if !o.Live(c.Node) {
			c.Ready, c.Serving = false, false
		}
		at := netip.AddrPortFrom(c.Addr, c.Port)
		if old, ok := found[at]; !ok || better(c, old) {
			found[at] = c
		}
	}
	o.selected(e.record, func(pod *corev1.Pod) {
		if pod.Status.Phase != corev1.PodRunning && !e.record.Spec.PublishNotReadyAddresses {
			return
		}
		port, ok := targetPort(pod, p, proto)
		if !ok {
			e.problem(KeyOf(e.record), "port %q: pod %s/%s declares no %s port named %q; the label %s%s=NUMBER can",
				p.Name, pod.Namespace, pod.Name, proto, p.TargetPort.StrVal, LabelPortPrefix, p.TargetPort.StrVal)
			return
		}
		podCandidates(pod, e.record.Spec.PublishNotReadyAddresses, port, ipv6, add)
	})
	for _, s := range o.sliceOf[objectName{e.record.Namespace, e.record.Name}] {
		o.sliceCandidates(e, s, p, proto, ipv6, add)
	}
	out := make([]Endpoint, 0, len(found))
	for _, c := range found {
		out = append(out, c.Endpoint)
	}
	slices.SortFunc(out, Endpoint.compare)
	fallBack(out)
	return out
}

// better decides between two records of one address and port: a ready one, then
// the younger, as the other is a leftover of its predecessor. The rest makes the
// choice independent of the order in which the records are met.
func better(a, b candidate) bool {
	return cmp.Or(compareBool(a.Ready, b.Ready), a.created.Compare(b.created), compareBool(a.Serving, b.Serving),
		compareBool(b.Terminating, a.Terminating), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node)) > 0
}

// fallBack lets endpoints that terminate but still serve take connections if
// there is nothing better, as Kubernetes does (KEP-1669).
func fallBack(es []Endpoint) {
	if slices.ContainsFunc(es, func(e Endpoint) bool { return e.Ready }) {
		return
	}
	for i := range es {
		es[i].Ready = es[i].Serving && es[i].Terminating
	}
}

func targetPort(pod *corev1.Pod, p *corev1.ServicePort, proto Protocol) (uint16, bool) {
	switch {
	case p.TargetPort.StrVal != "":
		return containerPort(pod, p.TargetPort.StrVal, proto)
	case p.TargetPort.IntVal != 0:
		return uint16(p.TargetPort.IntVal), true
	}
	return uint16(p.Port), true
}

func podCandidates(pod *corev1.Pod, publishNotReady bool, port uint16, ipv6 bool, add func(candidate)) {
	terminating := pod.DeletionTimestamp != nil
	serving := podReady(pod)
	for _, a := range podAddrs(pod, ipv6) {
		add(candidate{
			Endpoint: Endpoint{
				Addr: a, Port: port, Node: pod.Spec.NodeName,
				ID:    identity(string(pod.UID), pod.Annotations[AnnotationContainerID]),
				Ready: publishNotReady || serving && !terminating, Serving: serving, Terminating: terminating,
			},
			created: pod.CreationTimestamp.Time,
		})
	}
}

// sliceCandidates takes what a user's slice says of one port. Addresses that
// would turn a client's packets against a node, the store's users' own hosts
// included, are named and left out, whoever let them into the store
// (CVE-2021-25737).
func (o *Objects) sliceCandidates(e *serviceEntry, s *discoveryv1.EndpointSlice, p *corev1.ServicePort, proto Protocol, ipv6 bool, add func(candidate)) {
	if ipv6 != (s.AddressType == discoveryv1.AddressTypeIPv6) {
		return
	}
	port, ok := slicePort(s, p.Name, proto)
	if !ok {
		return
	}
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		ready, serving, terminating := sliceConditions(ep.Conditions)
		for _, text := range ep.Addresses {
			a, err := endpointAddr(s.AddressType, text)
			if err == nil {
				err = o.refuseEndpoint(a)
			}
			if err != nil {
				e.problem(KeyOf(s), "endpoint not programmed: %v", err)
				continue
			}
			c := candidate{Endpoint: Endpoint{Addr: a, Port: port, Ready: ready, Serving: serving, Terminating: terminating}}
			if ep.NodeName != nil {
				c.Node = *ep.NodeName
			}
			if ep.TargetRef != nil && ep.TargetRef.UID != "" {
				c.ID = identity(string(ep.TargetRef.UID), "")
			} else {
				c.ID = identity(s.Namespace+"/"+e.record.Name, text)
			}
			add(c)
		}
	}
}

// CheckEndpoints judges the endpoints a user wrote by the nodes in the set, as
// State will; the error is an *InvalidError.
func (o *Objects) CheckEndpoints(s *discoveryv1.EndpointSlice) error {
	o.State()
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

// refuseEndpoint refuses addresses that only the whole set shows to be wrong.
func (o *Objects) refuseEndpoint(a netip.Addr) error {
	for _, p := range o.self.ServiceCIDRs {
		if p.Contains(a) {
			return fmt.Errorf("%q is a service address; want a pod's or a host's", a)
		}
	}
	if name, ok := o.underlays[a]; ok {
		return fmt.Errorf("%q is node %s's own address; want a pod's, or a host's that is no node", a, name)
	}
	return nil
}

// slicePort finds the slice's port of a service port: the names agree, and both
// being empty is agreement.
func slicePort(s *discoveryv1.EndpointSlice, name string, proto Protocol) (uint16, bool) {
	for i := range s.Ports {
		p := &s.Ports[i]
		var pname string
		if p.Name != nil {
			pname = *p.Name
		}
		var pproto corev1.Protocol
		if p.Protocol != nil {
			pproto = *p.Protocol
		}
		if got, ok := protocolOf(pproto); ok && got == proto && pname == name && p.Port != nil && *p.Port > 0 && *p.Port <= 65535 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

// sliceConditions reads conditions as discovery/v1 says: ready and serving are
// true where not given, terminating false.
func sliceConditions(c discoveryv1.EndpointConditions) (ready, serving, terminating bool) {
	value := func(p *bool, absent bool) bool {
		if p == nil {
			return absent
		}
		return *p
	}
	ready = value(c.Ready, true)
	return ready, value(c.Serving, ready), value(c.Terminating, false)
}

// identity is a number for who is behind an address, never 0.
func identity(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return max(h.Sum64(), 1)
}

func (e *serviceEntry) problem(key Key, format string, args ...any) {
	e.problems = append(e.problems, Problem{key, fmt.Sprintf(format, args...)})
}
