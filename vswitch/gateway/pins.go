package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"vswitch/internal/wire"
	"vswitch/vswitch/affinity"
	"vswitch/vswitch/flow"
)

// pins say which clients of a service port keep their endpoints, under one traffic
// policy: the endpoint under one may be none under the other.
type pins struct {
	memory  *affinity.Memory
	service uint64
	timeout uint32 // ticks
}

// pinsOf is nil without affinity.
func pinsOf(s *Service, local bool, memory *affinity.Memory) *pins {
	if s.Affinity == 0 {
		return nil
	}
	// Names, so that they mean the same to the process after this one, which neither "/"
	// nor ":" is in.
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %t", s.ServiceKey, local))
	return &pins{memory: memory, service: binary.BigEndian.Uint64(sum[:]), timeout: ticksOf(s.Affinity)}
}

func (p *pins) client(addr *wire.Addr) *affinity.Client {
	return &affinity.Client{Service: p.service, Addr: *addr}
}

// choose gives a client the endpoint of the pool's that it had, or a random one that it
// keeps if that is to be remembered.
func (p *pins) choose(from *pool, addr *wire.Addr, tick uint32, remember bool) flow.Endpoint {
	if remember {
		return p.memory.Choose(p.client(addr), from, tick, p.timeout)
	}
	if e, ok := p.memory.Look(p.client(addr), from, tick, p.timeout); ok {
		return e
	}
	return from.Random()
}

// remembers reports whether a client has an endpoint that it would get again.
func (p *pins) remembers(from *pool, addr *wire.Addr, tick uint32) bool {
	_, ok := p.memory.Look(p.client(addr), from, tick, p.timeout)
	return ok
}

// move gives a client that is remembered another endpoint.
func (p *pins) move(addr *wire.Addr, e *flow.Endpoint, tick uint32) {
	p.memory.Move(p.client(addr), e, tick)
}
