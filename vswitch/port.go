package vswitch

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// GatewayMAC is the address every pod sees as its gateway, on every node:
// locally administered (IEEE 802-2014 section 8.4).
var GatewayMAC = frame.MAC{0x02, 0x76, 0x73, 0x77, 0x00, 0x01}

// The gateway as a pod sees it: link-local, so that it can be the same
// everywhere and never clash with a pod or a service.
var (
	GatewayIPv4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	GatewayIPv6 = netip.MustParseAddr("fe80::1")
)

// PortKind says whose queues a port holds, and so how its frames are judged.
type PortKind uint8

// Port kinds.
const (
	PortPod     PortKind = iota + 1 // guarded: may speak for its own MAC and addresses only
	PortTunnel                      // frames of other nodes, each member bound to its prefixes
	PortGateway                     // the netstack: trusted
)

func (k PortKind) String() string {
	switch k {
	case PortPod:
		return "pod"
	case PortTunnel:
		return "tunnel"
	case PortGateway:
		return "gateway"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// PortConfig describes a port to add.
type PortConfig struct {
	Kind PortKind
	// Name is unique among the ports; a pod's is namespace/name/container ID.
	Name string
	// MAC and Addrs are what a pod port is bound to.
	MAC   frame.MAC
	Addrs []netip.Addr
	// MTUBytes bounds the IP packets sent out of the port: 576 to 65,535.
	MTUBytes int
	// JoinDatagrams lets datagrams that enter one by one leave as UDP super-frames,
	// where they may (stages.go): for queues of a kernel that takes such from a TAP.
	JoinDatagrams bool
	// Paths may say less for some of a tunnel's peers; nil: none is narrower.
	Paths Paths
	// Queues has one entry for each worker. The port owns them from here on,
	// also when AddPort fails.
	Queues []Queue
}

func (c *PortConfig) validate(workers int) error {
	switch {
	case c.Name == "":
		return errors.New("no name")
	case c.Kind < PortPod || c.Kind > PortGateway:
		return fmt.Errorf("unknown kind %d", c.Kind)
	case len(c.Queues) != workers:
		return fmt.Errorf("%d queues, want one for each of %d workers", len(c.Queues), workers)
	case c.MTUBytes < 576 || c.MTUBytes > 65535:
		return fmt.Errorf("MTU %d, want 576 to 65535", c.MTUBytes)
	case c.Kind == PortPod && (c.MAC.IsZero() || c.MAC.IsMulticast()):
		return fmt.Errorf("MAC %v, want a unicast address", c.MAC)
	case c.Kind == PortPod && len(c.Addrs) == 0:
		return errors.New("no address")
	}
	return nil
}

// port is what workers see of a port. All but the counters is immutable once
// published.
type port struct {
	id       uint32
	kind     PortKind
	name     string
	mac      frame.MAC
	addrs    []wire.Addr
	mtuBytes int
	joins    bool
	paths    Paths
	owner    uint64 // to whom the flows it opens are charged; zero for tunnel and gateway
	queues   []Queue
	counters []counters // by worker
	answers  []limiter  // by worker: frames of the switch's own
	spares   []*spares  // by worker: nil until one is needed
}

// OwnerID is the identity that the flow table charges a pod port's flows to. It means
// the same to another process that maps the table. Names are the runtime's choice,
// not the pod's; still none can be found that collides with a given other.
func OwnerID(portName string) uint64 {
	sum := sha256.Sum256([]byte(portName))
	return binary.BigEndian.Uint64(sum[:]) | 1
}

func newPort(id uint32, c *PortConfig) *port {
	p := &port{
		id: id, kind: c.Kind, name: c.Name, mac: c.MAC, mtuBytes: c.MTUBytes, joins: c.JoinDatagrams, paths: c.Paths, queues: c.Queues,
		counters: make([]counters, len(c.Queues)),
		answers:  make([]limiter, len(c.Queues)),
		spares:   make([]*spares, len(c.Queues)),
	}
	for i := range p.answers {
		p.answers[i].tokens = answersBurst
	}
	if c.Kind == PortPod {
		p.owner = OwnerID(c.Name)
	}
	for _, a := range c.Addrs {
		p.addrs = append(p.addrs, wire.AddrFrom(a))
	}
	return p
}

// owns reports whether a is one of the port's addresses: two or so, so a loop.
func (p *port) owns(a *wire.Addr) bool {
	for i := range p.addrs {
		if p.addrs[i] == *a {
			return true
		}
	}
	return false
}

// mtuTo bounds IP packets that leave by the port to a peer.
func (p *port) mtuTo(peer uint32) int {
	if p.paths != nil {
		if n := p.paths.PathMTU(peer); n != 0 {
			return min(n, p.mtuBytes)
		}
	}
	return p.mtuBytes
}

func (p *port) closeQueues() error {
	var errs []error
	for _, q := range p.queues {
		if err := q.Close(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
