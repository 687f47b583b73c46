// Package gateway is a node's way between pods and everything that is not a
// pod: a gVisor netstack that the switch sees as a port.
//
// It owns every service address (Pick says where a new flow goes; the switch
// carries the flow), takes pods' connections out through host sockets, and
// brings node port clients in, with their own address as source where the
// endpoint is a pod of this node. TCP terminates in the netstack; UDP and echo
// are relayed datagram by datagram, the netstack only cutting and joining
// fragments. It needs no capability.
//
// It routes nothing between pods, keeps no flow table, and does not know where
// services come from. Queue, Pick and HasVIP are for the switch's workers; the
// rest is for the node's wiring.
//
//	link/        frames in and out of the netstack: rings, offload, checksums
//	stack.go     the netstack's settings
//	inbound.go   what becomes of a frame from a pod
//	policy.go    where pods may go, and whose address is kept
//	egress.go    TCP of pods to the world
//	relay.go     UDP and echo, both ways
//	nodeport.go  host ports that are open for services
//	ingress.go   TCP of the world to pods
//	splice.go    two TCP connections joined
//	refuse.go    resets and ICMP errors
//	service.go   the service table
package gateway

import (
	"fmt"
	"sync"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway/link"
)

// Gateway is one node's. Its methods may be called from any goroutine.
type Gateway struct {
	cfg      Config
	services *services
	link     *link.Link

	closing sync.Once
}

// New starts a gateway without services.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{cfg: cfg, services: newServices()}
	var err error
	g.link, err = link.New(link.Config{Queues: cfg.Queues, RingPackets: cfg.RingPackets, MTUBytes: cfg.MTUBytes, MAC: cfg.MAC})
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return g, nil
}

// Queue is worker i's side of the gateway, 0 <= i < Config.Queues. The switch
// closes it when it removes the port.
func (g *Gateway) Queue(i int) *link.Queue { return g.link.Queue(i) }

// Pick chooses the endpoint for a new flow to a VIP, each ready one with equal
// probability. A reason other than drop.None refuses it: drop.NoService or
// drop.NoEndpoint.
func (g *Gateway) Pick(k *flow.Key, _ *wire.Headers) (flow.Endpoint, drop.Reason) {
	return g.services.pick(k)
}

// HasVIP reports whether some service has this address.
func (g *Gateway) HasVIP(a *wire.Addr) bool { return g.services.hasVIP(a) }

// PutService adds a service port or replaces the one of the same key. The value
// is copied. An error means nothing changed.
func (g *Gateway) PutService(s Service) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("gateway: service %v: %w", s.ServiceKey, err)
	}
	gone, err := g.services.put(s.clone())
	if err != nil {
		return fmt.Errorf("gateway: service %v: %w", s.ServiceKey, err)
	}
	g.tellGone(gone)
	return nil
}

// DeleteService forgets a service port; one that is not there is no error.
func (g *Gateway) DeleteService(key ServiceKey) error {
	_, gone := g.services.delete(key)
	g.tellGone(gone)
	return nil
}

func (g *Gateway) tellGone(gone []Gone) {
	if g.cfg.EndpointGone == nil {
		return
	}
	for _, e := range gone {
		g.cfg.EndpointGone(e)
	}
}

// Close ends every connection with a reset and stops all goroutines. Close it
// while the switch still serves its port, so that the resets reach the pods;
// the queues are the switch's to close. It may be called twice.
func (g *Gateway) Close() error {
	g.closing.Do(func() {})
	return nil
}
