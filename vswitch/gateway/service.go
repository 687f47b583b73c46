package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"vswitch/internal/wire"
)

// Endpoint is one backend of a service port.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	// ID is the identity of the pod behind the address: another pod with the same
	// address has another.
	ID uint64
	// Cluster and Local: it takes new flows where the policy is Cluster, or Local.
	// An endpoint with neither keeps its connections and takes no new ones.
	Cluster, Local bool
	// OnNode: it runs on this node. Ready: it is not merely finishing what it has, so
	// it counts where a load balancer asks for this node's health.
	OnNode, Ready bool
}

// compare orders endpoints by pod, then by where it listens.
func (e *Endpoint) compare(o *Endpoint) int {
	return cmp.Or(cmp.Compare(e.ID, o.ID), e.Addr.Compare(o.Addr), cmp.Compare(e.Port, o.Port))
}

// takesNew reports whether some new flow may go to the endpoint.
func (e *Endpoint) takesNew() bool { return e.Cluster || e.Local }

// ServiceKey names one port of one service.
type ServiceKey struct {
	Namespace, Name, PortName string
}

func (k ServiceKey) String() string {
	if k.PortName == "" {
		return k.Namespace + "/" + k.Name
	}
	return k.Namespace + "/" + k.Name + ":" + k.PortName
}

// Service is one port of one service, both families.
type Service struct {
	ServiceKey
	Protocol uint8        // wire.ProtoTCP, ProtoUDP or ProtoSCTP
	VIPs     []netip.Addr // ClusterIPs
	Port     uint16
	NodePort uint16 // zero: none; for SCTP, which host sockets do not speak, pods alone have it
	// LoadBalancerIPs and ExternalIPs are addresses for clients outside the cluster.
	// Pods use them too, whatever the policy for outside clients.
	LoadBalancerIPs, ExternalIPs []netip.Addr
	// SourceRanges are the clients that may come to LoadBalancerIPs; none: all may.
	SourceRanges []netip.Prefix
	// Endpoints of either family: a VIP is served by those of its own.
	Endpoints []Endpoint
	// InternalLocal and ExternalLocal keep VIP traffic, or node port traffic, on
	// this node: a node without a local endpoint refuses (Kubernetes
	// internalTrafficPolicy and externalTrafficPolicy).
	InternalLocal, ExternalLocal bool
	// Affinity is for how long a client stays with the endpoint it was given (sessionAffinity
	// ClientIP); zero: every flow is given one afresh.
	Affinity time.Duration
	// HealthCheckNodePort tells load balancers whether this node has endpoints that
	// outside clients reach; zero: none.
	HealthCheckNodePort uint16
	// Proxy makes the gateway terminate the connections; nil: flows are rewritten.
	Proxy *Proxy
}

// Proxy is what a service in proxy mode asks for.
type Proxy struct {
	ProtocolV2 bool // tell endpoints the client's address by a PROXY protocol v2 header
}

// validate refuses what the datapath could not carry out.
func (s *Service) validate() error {
	switch s.Protocol {
	case wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP:
	default:
		return fmt.Errorf("protocol %d, want TCP, UDP or SCTP", s.Protocol)
	}
	if s.Port == 0 {
		return errors.New("port 0")
	}
	for a := range s.addresses() {
		if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("VIP %v is no service address", a)
		}
	}
	if s.Affinity < 0 {
		return fmt.Errorf("affinity of %v", s.Affinity)
	}
	for _, e := range s.Endpoints {
		if err := e.validate(); err != nil {
			return err
		}
	}
	return nil
}

// validate keeps traffic off the host's loopback and off link-local services
// such as cloud metadata, whatever an EndpointSlice says (CVE-2021-25737).
func (e *Endpoint) validate() error {
	a := e.Addr
	if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		a.IsLinkLocalUnicast() || a == broadcast4 {
		return fmt.Errorf("endpoint %v: the address is none that a pod can have", a)
	}
	if e.Port == 0 {
		return fmt.Errorf("endpoint %v: port 0", a)
	}
	return nil
}

// clone detaches a service from the caller's slices, and sorts its endpoints.
func (s *Service) clone() *Service {
	c := *s
	c.VIPs = slices.Clone(s.VIPs)
	c.LoadBalancerIPs = slices.Clone(s.LoadBalancerIPs)
	c.ExternalIPs = slices.Clone(s.ExternalIPs)
	c.SourceRanges = slices.Clone(s.SourceRanges)
	if s.Proxy != nil {
		c.Proxy = new(*s.Proxy)
	}
	c.Endpoints = slices.Clone(s.Endpoints)
	slices.SortFunc(c.Endpoints, func(a, b Endpoint) int { return a.compare(&b) })
	return &c
}

// addresses are all at which Port is served.
func (s *Service) addresses() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, as := range [][]netip.Addr{s.VIPs, s.LoadBalancerIPs, s.ExternalIPs} {
			for _, a := range as {
				if !yield(a) {
					return
				}
			}
		}
	}
}
