package control

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"vswitch/vswitch/frame"
)

// State is what one node's dataplane should hold. Both lists are sorted by key
// and hold each key once.
type State struct {
	Tunnels  []Tunnel
	Services []Service
}

// TunnelKey names a way to another node. A vswitch node has one ("vxlan"); a
// flannel node has one for each family it carries, named as flannel names the
// devices ("flannel.1", "flannel-v6.1").
type TunnelKey struct {
	Node   string
	Device string
}

// Tunnel is another node as a VXLAN member, and the pod prefixes behind it.
type Tunnel struct {
	TunnelKey
	Underlay netip.Addr // where its packets go to and come from
	Ports    []uint16   // UDP ports it listens on; it sends only from them unless AnyPort
	AnyPort  bool       // its source ports mean nothing: a kernel VXLAN device hashes the flow into them
	VNI      uint32     // 24 bits
	// IngressVNI is where it takes frames from outside the cluster; 0: nowhere.
	IngressVNI uint32
	MAC        frame.MAC      // of its VTEP, the destination inside
	Prefixes   []netip.Prefix // of its pods, sorted; the first address after each network address is its router's
}

// Protocol is an IP protocol number (IANA), of those a service can have.
type Protocol uint8

// Protocols of services.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the name Kubernetes uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// ServiceKey names one port of a service in one family.
type ServiceKey struct {
	Namespace, Name string
	PortName        string // empty where a service has one port without a name
	IPv6            bool
}

// Service is one port of a service in one family: where clients reach it, and
// the endpoints behind it. Headless services and ExternalNames have none. All
// addresses are of the key's family.
type Service struct {
	ServiceKey
	Protocol Protocol
	VIPs     []netip.Addr // ClusterIPs
	Port     uint16       // at VIPs, LoadBalancerIPs and ExternalIPs
	NodePort uint16       // at the nodes' own addresses; 0: none

	// LoadBalancerIPs and ExternalIPs are for clients outside; pods use them too.
	// SourceRanges, of both families, are who may come to LoadBalancerIPs; empty:
	// everybody.
	LoadBalancerIPs []netip.Addr
	ExternalIPs     []netip.Addr
	SourceRanges    []netip.Prefix

	Endpoints []Endpoint // of the key's family, sorted by address and port, none twice

	// ExternalLocal and InternalLocal are the traffic policies "Local": clients
	// outside, or pods, reach only endpoints of the node they came to.
	ExternalLocal, InternalLocal bool

	// Affinity is how long a client address stays with its endpoint after its
	// last connection; 0: no affinity.
	Affinity time.Duration

	// HealthCheckNodePort is where a load balancer asks whether this node has
	// endpoints of its own; 0: it need not ask.
	HealthCheckNodePort uint16

	Proxy *Proxy // nil: flows are rewritten
}

// Proxy asks for connections to be terminated in the gateway.
type Proxy struct {
	ProtocolV2 bool // endpoints are told the client by a PROXY protocol v2 header
}

// Endpoint is one backend of a service.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	ID   uint64 // identity of the pod: another pod at this address has another. Never 0
	Node string // where it runs; empty if not known

	// Cluster and Local: it takes new connections of clients to whom the policy
	// Cluster, or Local, applies. One with neither keeps its connections.
	Cluster, Local bool

	// What is known of it; the two above follow from these and from the other
	// endpoints. None of a node that is not live is ready or serving.
	Ready, Serving, Terminating bool
}

// Dataplane is what the reconciler drives: the switch, its tunnel and its
// gateway. Calls come from one goroutine. Put replaces what has the same key;
// Delete of what is not there is no error. A call that failed is made again,
// later and as often as it takes.
//
// Together calls f, which calls the other methods for tunnels alone; what that changes
// may be in force only at its end. To change all tunnels of a large cluster one by one
// would cost the square of their number.
type Dataplane interface {
	Together(f func())
	PutTunnel(Tunnel) error
	DeleteTunnel(TunnelKey) error
	PutService(Service) error
	DeleteService(ServiceKey) error
}

func (k TunnelKey) compare(o TunnelKey) int {
	return cmp.Or(cmp.Compare(k.Node, o.Node), cmp.Compare(k.Device, o.Device))
}

// String reads "node/device".
func (k TunnelKey) String() string { return k.Node + "/" + k.Device }

func (k ServiceKey) compare(o ServiceKey) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name),
		cmp.Compare(k.PortName, o.PortName), compareBool(k.IPv6, o.IPv6))
}

// String reads "namespace/name:port/IPv4".
func (k ServiceKey) String() string {
	family := "/IPv4"
	if k.IPv6 {
		family = "/IPv6"
	}
	return k.Namespace + "/" + k.Name + ":" + k.PortName + family
}

func (t *Tunnel) equal(o *Tunnel) bool {
	return t.TunnelKey == o.TunnelKey && t.Underlay == o.Underlay && slices.Equal(t.Ports, o.Ports) &&
		t.AnyPort == o.AnyPort && t.VNI == o.VNI && t.IngressVNI == o.IngressVNI && t.MAC == o.MAC && slices.Equal(t.Prefixes, o.Prefixes)
}

func (s *Service) equal(o *Service) bool {
	return s.ServiceKey == o.ServiceKey && s.Protocol == o.Protocol && slices.Equal(s.VIPs, o.VIPs) &&
		s.Port == o.Port && s.NodePort == o.NodePort && slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) && slices.Equal(s.SourceRanges, o.SourceRanges) &&
		slices.Equal(s.Endpoints, o.Endpoints) && s.ExternalLocal == o.ExternalLocal && s.InternalLocal == o.InternalLocal &&
		s.Affinity == o.Affinity && s.HealthCheckNodePort == o.HealthCheckNodePort &&
		(s.Proxy == nil) == (o.Proxy == nil) && (s.Proxy == nil || *s.Proxy == *o.Proxy)
}

func (e Endpoint) compare(o Endpoint) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Port, o.Port))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
