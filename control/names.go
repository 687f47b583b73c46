package control

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"vswitch/internal/dns"
)

// Names is what DNS says of the services that a Controller has seen: the zone of
// the cluster. Objects write it, a service at a time as they compile it; DNS reads
// it for every question. A look-up is one map access under a read lock, whatever
// the number of services, and what it returns is never changed.
type Names struct {
	mu       sync.RWMutex
	services map[objectName]*dns.Service // guarded by mu
	spaces   map[string]int              // guarded by mu: namespace -> its services
	behind   map[netip.Addr][]dns.Name   // guarded by mu; a changed list is a new one
}

var _ dns.Zone = (*Names)(nil)

func newNames() *Names {
	return &Names{services: map[objectName]*dns.Service{}, spaces: map[string]int{}, behind: map[netip.Addr][]dns.Name{}}
}

// Service implements dns.Zone.
func (n *Names) Service(namespace, name string) *dns.Service {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.services[objectName{namespace, name}]
}

// HasNamespace implements dns.Zone.
func (n *Names) HasNamespace(namespace string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.spaces[namespace] > 0
}

// Behind implements dns.Zone.
func (n *Names) Behind(a netip.Addr) []dns.Name {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.behind[a]
}

// put replaces a service's names; nil removes them.
func (n *Names) put(key objectName, s *dns.Service) {
	old := n.services[key] // this is the only writer
	if reflect.DeepEqual(old, s) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old != nil {
		n.eachAddr(old, func(a netip.Addr, _ dns.Name) {
			n.setBehind(a, slices.DeleteFunc(slices.Clone(n.behind[a]), func(b dns.Name) bool { return b.Service == old }))
		})
		delete(n.services, key)
		if n.spaces[key.namespace]--; n.spaces[key.namespace] == 0 {
			delete(n.spaces, key.namespace)
		}
	}
	if s != nil {
		n.eachAddr(s, func(a netip.Addr, name dns.Name) {
			n.setBehind(a, append(slices.Clip(n.behind[a]), name))
		})
		n.services[key] = s
		n.spaces[key.namespace]++
	}
}

// setBehind says who has an address. Callers hold mu.
func (n *Names) setBehind(a netip.Addr, names []dns.Name) {
	if len(names) == 0 {
		delete(n.behind, a)
		return
	}
	n.behind[a] = names
}

func (n *Names) eachAddr(s *dns.Service, f func(netip.Addr, dns.Name)) {
	for _, a := range s.Addrs {
		f(a, dns.Name{Service: s})
	}
	for _, e := range s.Endpoints {
		f(e.Addr, dns.Name{Service: s, Hostname: e.Hostname})
	}
}

// trimNames removes the names of services that are no longer there. It is not part
// of State, since a list that wipes most of them is doubted for a while.
func (o *Objects) trimNames() {
	if o.names == nil {
		return
	}
	gone := slices.Values(o.namesGone)
	if o.namesStale {
		gone = maps.Keys(o.names.services)
	}
	for key := range gone {
		if e := o.entries[key]; e == nil || e.record == nil {
			o.names.put(key, nil)
		}
	}
	o.namesStale, o.namesGone = false, nil
}

// compileNames brings the names of one service up to date. It follows
// compileService.
func (o *Objects) compileNames(key objectName, e *serviceEntry) {
	if o.names == nil {
		return
	}
	spec := &e.record.Spec
	s := &dns.Service{Namespace: key.namespace, Name: key.name}
	switch {
	case spec.Type == corev1.ServiceTypeExternalName:
		s.ExternalName = strings.TrimSuffix(spec.ExternalName, ".")
	case isHeadless(spec):
		s.Headless = true
		s.Endpoints = o.namedEndpoints(e)
	default:
		for _, ip := range spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				s.Addrs = append(s.Addrs, a)
			}
		}
		for i := range spec.Ports {
			if p := &spec.Ports[i]; p.Name != "" {
				s.Ports = append(s.Ports, namedPort(p, uint16(p.Port)))
			}
		}
	}
	o.names.put(key, s)
}

func namedPort(p *corev1.ServicePort, number uint16) dns.Port {
	proto, _ := protocolOf(p.Protocol)
	return dns.Port{Name: strings.ToLower(p.Name), Protocol: strings.ToLower(proto.String()), Number: number}
}

// namedEndpoints are the addresses behind a headless service that have names: those
// of ready endpoints, or of all if the service publishes them, sorted by address.
// Ports are the endpoints' own, as there is nobody between to translate them.
func (o *Objects) namedEndpoints(e *serviceEntry) []dns.Endpoint {
	spec := &e.record.Spec
	found := map[netip.Addr]*dns.Endpoint{}
	add := func(a netip.Addr, hostname string) *dns.Endpoint {
		at := found[a]
		if at == nil {
			at = &dns.Endpoint{Addr: a, Hostname: dns.HostnameOf(a)}
			found[a] = at
		}
		if len(validation.IsDNS1123Label(hostname)) == 0 {
			at.Hostname = hostname
		}
		return at
	}
	addPort := func(at *dns.Endpoint, p *corev1.ServicePort, number uint16) {
		if np := namedPort(p, number); p.Name != "" && !slices.Contains(at.Ports, np) {
			at.Ports = append(at.Ports, np)
		}
	}
	o.selected(e.record, func(pod *podRecord) {
		o.seen.node(pod.node)
		ready := pod.ready() && !pod.terminating() && o.Live(pod.node)
		if !ready && !spec.PublishNotReadyAddresses {
			return
		}
		hostname := ""
		if pod.subdomain == e.record.Name {
			hostname = pod.hostname
		}
		for _, a := range pod.addrs {
			at := add(a, hostname)
			for i := range spec.Ports {
				p := &spec.Ports[i]
				proto, _ := protocolOf(p.Protocol)
				if number, ok := pod.target(p, proto); ok {
					addPort(at, p, number)
				}
			}
		}
	})
	o.eachSliceEndpoint(e, func(a netip.Addr, hostname string, ports func(*corev1.ServicePort) (uint16, bool)) {
		at := add(a, hostname)
		for i := range spec.Ports {
			if number, ok := ports(&spec.Ports[i]); ok {
				addPort(at, &spec.Ports[i], number)
			}
		}
	})
	out := make([]dns.Endpoint, 0, len(found))
	for _, at := range found {
		out = append(out, *at)
	}
	slices.SortFunc(out, func(a, b dns.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return out
}

// eachSliceEndpoint calls f for each address of a headless service's slices that is
// to be published. ports finds the number of a service port.
func (o *Objects) eachSliceEndpoint(e *serviceEntry, f func(a netip.Addr, hostname string, ports func(*corev1.ServicePort) (uint16, bool))) {
	own := slices.Clone(o.sliceOf[objectName{e.record.Namespace, e.record.Name}])
	slices.SortFunc(own, func(a, b *Slice) int { return cmp.Compare(a.Name, b.Name) }) // of two hostnames for one address the last counts
	for _, s := range own {
		ports := func(p *corev1.ServicePort) (uint16, bool) {
			proto, _ := protocolOf(p.Protocol)
			return s.port(p.Name, proto)
		}
		for _, ep := range s.each {
			if !ep.hasAddress() {
				continue
			}
			ready, _, _ := ep.conditions()
			if node := ep.nodeName(); node != "" {
				o.seen.node(node)
				ready = ready && o.Live(node)
			}
			if !ready && !e.record.Spec.PublishNotReadyAddresses {
				continue
			}
			hostname := ""
			if ep.more != nil && ep.more.hostname != nil {
				hostname = *ep.more.hostname
			}
			a, err := ep.endpointAddr(s.addressType)
			if err == nil {
				err = o.refuseEndpoint(a)
			}
			if err != nil {
				e.problem(KeyOf(s), "endpoint gets no name: %v", err)
				continue
			}
			f(a, hostname, ports)
		}
	}
}
