package flow

import (
	"vswitch/internal/wire"
)

// Key is the tuple that tells one connection's packets in one direction from all
// others. For ICMP echo both ports hold the identifier, so that a request's key
// reversed is its answer's.
type Key struct {
	Src, Dst         wire.Addr
	SrcPort, DstPort uint16
	Proto            uint8
	_                [3]byte
}

// KeyOf takes the tuple of a packet whose ports are known (h.HasL4).
func KeyOf(h *wire.Headers) Key {
	return Key{Src: h.Src, Dst: h.Dst, SrcPort: h.SrcPort, DstPort: h.DstPort, Proto: h.Proto}
}

// Reverse is the tuple of the answers to packets with tuple k.
func (k Key) Reverse() Key {
	return Key{Src: k.Dst, Dst: k.Src, SrcPort: k.DstPort, DstPort: k.SrcPort, Proto: k.Proto}
}

// Endpoint is where a service sends a flow.
type Endpoint struct {
	Addr wire.Addr
	Port uint16
	ID   uint64 // identity of the pod behind the address; another pod with the same address has another
	// Gateway: the gateway serves the flow itself; Addr and Port are what the
	// client asked for.
	Gateway bool
}
