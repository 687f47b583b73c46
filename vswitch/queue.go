package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// Queue is one file descriptor's worth of frames: of a TAP device, of a tunnel's
// UDP socket, or of one side of the netstack.
//
// Queue i of a port belongs to worker i: Receive and Transmit are called by that
// worker alone, from its thread. Close is called once, after the worker has let
// go of the queue.
type Queue interface {
	// PollFD is the descriptor that becomes readable when Receive has something
	// (level triggered), or -1 for a queue that is only ever written to.
	PollFD() int
	// Receive appends frames to b until nothing is pending or b is full. Adding
	// nothing means nothing was pending. A frame that arrived but can't be used
	// is kept with its Drop set, so that it is counted. An error means the queue
	// is dead: its device or socket is gone, and it is not polled again.
	Receive(b *frame.Batch) error
	// Transmit sends fs in order, borrowed for the call. A frame that could not
	// be sent gets its Drop set; the others are gone.
	Transmit(fs []*frame.Frame)
	// Close releases the descriptor.
	Close() error
}

// Paths says what the ways beyond a tunnel carry, where that is less than the
// port's MTU.
type Paths interface {
	// PathMTU is the longest IP packet that may go to a peer, or 0: the port's MTU
	// holds. Every worker calls it for each frame to the tunnel, so it must be quick
	// and take no lock.
	PathMTU(peer uint32) int
}

// Services answers for the VIPs. It is called by every worker at once, per flow
// and not per frame, and must not block.
type Services interface {
	// Pick chooses the endpoint for a new flow to a VIP, or to a node's address. A
	// reason other than drop.None refuses it: drop.NoService, drop.NoEndpoint or
	// drop.SourceRange; at a node's address drop.NoService only says that nothing but
	// the node is there.
	Pick(k *flow.Key, h *wire.Headers) (flow.Endpoint, drop.Reason)
	// HasVIP reports whether some service has this address.
	HasVIP(a *wire.Addr) bool
	// Exposed reports whether a pod's port is open to clients outside the cluster who
	// come by way of other nodes.
	Exposed(a *wire.Addr, port uint16, proto uint8) bool
}
