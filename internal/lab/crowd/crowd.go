// Package crowd makes the objects of a Kubernetes cluster of thousands of nodes, and
// writes them where its API server finds them: Nodes, Pods, Services and EndpointSlices
// as kubelets and controllers leave them, that agree with each other.
//
// An object follows from its number alone, so that whoever compares needs no copy of
// what was written. Nothing here runs: no pod has a network. One node, the first, may be
// a real one; no pod of the crowd is on it.
package crowd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Size is how large a cluster is.
type Size struct {
	Nodes    int `json:"nodes"`
	Pods     int `json:"pods"`
	Services int `json:"services"`
	// Endpoints of each service; 0: each pod stands behind one service.
	Endpoints int `json:"endpoints,omitempty"`
}

// Limits of the prefixes that addresses are taken from.
const (
	maxNodes    = 65536
	podsOfANode = 120
	maxServices = 500_000
	minNodes    = 2
)

// Validate says what is wrong with a size.
func (s Size) Validate() error {
	switch {
	case s.Nodes < minNodes || s.Nodes > maxNodes:
		return fmt.Errorf("%d nodes are not within %d..%d", s.Nodes, minNodes, maxNodes)
	case s.Pods < 2 || s.Pods > (s.Nodes-1)*podsOfANode:
		return fmt.Errorf("%d pods are not within 2..%d, %d on each node but the first", s.Pods, (s.Nodes-1)*podsOfANode, podsOfANode)
	case s.Services < 1 || s.Services > maxServices:
		return fmt.Errorf("%d services are not within 1..%d", s.Services, maxServices)
	case s.Behind() < 1 || s.Behind() > s.Pods/2:
		return fmt.Errorf("%d endpoints of each service are not within 1..%d, half of the pods", s.Behind(), s.Pods/2)
	}
	return nil
}

// Behind is how many endpoints each service has.
func (s Size) Behind() int {
	if s.Endpoints > 0 {
		return s.Endpoints
	}
	return s.Pods / max(s.Services, 1)
}

// Scaled is a cluster of other nodes in the same proportions. What a service has behind
// it stays what it is.
func (s Size) Scaled(nodes int) Size {
	by := func(n int) int { return n * nodes / s.Nodes }
	return Size{Nodes: nodes, Pods: by(s.Pods), Services: max(by(s.Services), 1), Endpoints: s.Behind()}
}

func (s Size) String() string {
	return fmt.Sprintf("%d nodes, %d pods, %d services of %d endpoints", s.Nodes, s.Pods, s.Services, s.Behind())
}

// The prefixes of the cluster. Nodes have a /25 each.
var (
	PodCIDR     = netip.MustParsePrefix("10.128.0.0/9")
	ServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")
	// underlays are those of nodes that don't exist (RFC 2544).
	underlays = netip.MustParsePrefix("198.18.0.0/15")
)

const (
	nodeBits = 25
	// The first services' addresses are for those that a user of the crowd adds.
	firstVIP = 1024
	// ServicePort leads to TargetPort of a pod.
	ServicePort, TargetPort = 80, 8080
)

// Crowd is a cluster.
type Crowd struct {
	Size
	// First is the name of the first node, which may be real.
	First string
	// Probes are services of one endpoint each, beside Size's.
	Probes int
}

// New checks the size.
func New(s Size, first string, probes int) (*Crowd, error) {
	if err := s.Validate(); err != nil {
		return nil, errors.New("crowd: " + err.Error())
	}
	return &Crowd{Size: s, First: first, Probes: probes}, nil
}

// AllServices counts the probes too, which come last.
func (c *Crowd) AllServices() int { return c.Services + c.Probes }

// AllSlices counts the slices of all services.
func (c *Crowd) AllSlices() int {
	return c.Services*((c.Behind()+endpointsOfSlice-1)/endpointsOfSlice) + c.Probes
}

// NodeName is node i's.
func (c *Crowd) NodeName(i int) string {
	if i == 0 {
		return c.First
	}
	return fmt.Sprintf("node-%05d", i)
}

// NodeCIDR is what node i's pods have addresses of.
func (c *Crowd) NodeCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(addr(PodCIDR, i<<(32-nodeBits)), nodeBits)
}

// Underlay is node i's own address; the first has one of its own.
func (c *Crowd) Underlay(i int) netip.Addr { return addr(underlays, i+1) }

// NodeOf is the node that pod i is on.
func (c *Crowd) NodeOf(i int) int { return 1 + i%(c.Nodes-1) }

// PodAddr is pod i's. The first address of a node is its router's.
func (c *Crowd) PodAddr(i int) netip.Addr {
	return addr(c.NodeCIDR(c.NodeOf(i)), 2+i/(c.Nodes-1))
}

// VIP is service i's address.
func (c *Crowd) VIP(i int) netip.Addr { return addr(ServiceCIDR, firstVIP+i) }

// Endpoints are the pods behind service i after it has changed a number of times. Each
// change replaces the first.
func (c *Crowd) Endpoints(i, changes int) []int {
	n := c.Behind()
	if i >= c.Services {
		n = 1
	}
	pods := make([]int, n)
	for e := range pods {
		pods[e] = (i*c.Behind() + e) % c.Pods
	}
	if changes%2 == 1 {
		pods[0] = (pods[0] + c.Pods/2) % c.Pods
	}
	return pods
}

func addr(in netip.Prefix, number int) netip.Addr {
	a := in.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(number))
	return netip.AddrFrom4(a)
}
