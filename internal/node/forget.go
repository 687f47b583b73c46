package node

import (
	"context"
	"net/netip"
	"sync"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// forgetting deletes the flows to endpoints that a service no longer sends to. To
// find them the whole flow table is looked through, so the endpoints are collected
// and one look serves all that went meanwhile: a rollout of a large service costs
// as many looks as there is time for.
type forgetting struct {
	flows  *flow.Table
	isNode func(netip.Addr) bool
	wake   chan struct{} // holds a token while something waits

	mu     sync.Mutex
	stale  map[target]struct{} // guarded by mu
	settle func()              // vswitch.Switch.Settle, once there is one; guarded by mu
}

// serve lets it wait for workers that were given an endpoint just before it went.
func (f *forgetting) serve(settle func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle = settle
}

// target is one way to an endpoint: by a service's address, or by a node port at
// whatever node's address (at is zero).
type target struct {
	endpoint uint64
	at       wire.Addr
	port     uint16
	proto    uint8
}

func newForgetting(flows *flow.Table, isNode func(netip.Addr) bool) *forgetting {
	return &forgetting{flows: flows, isNode: isNode, wake: make(chan struct{}, 1), stale: map[target]struct{}{}}
}

// add notes an endpoint that is gone for a service. UDP clients never notice by
// themselves, so their flows move at once. TCP connections may go on while the
// service lists the endpoint, which is how one that terminates drains. When it is
// listed no longer its pod is gone, or another's: the client's next segment finds
// no flow and is answered with a reset, and SCTP's reaches an endpoint that aborts.
func (f *forgetting) add(g *gateway.Gone) {
	if g.Protocol != wire.ProtoUDP && !g.Removed {
		return
	}
	f.mu.Lock()
	for _, a := range g.VIPs {
		f.stale[target{g.Endpoint, wire.AddrFrom(a), g.Port, g.Protocol}] = struct{}{}
	}
	if g.NodePort != 0 {
		f.stale[target{g.Endpoint, wire.Addr{}, g.NodePort, g.Protocol}] = struct{}{}
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run forgets until ctx ends.
func (f *forgetting) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			f.once()
		}
	}
}

// once forgets what add has noted so far. The services give no new flow to it by
// now, and those that were being made when it went are in the table.
func (f *forgetting) once() {
	f.mu.Lock()
	stale, settle := f.stale, f.settle
	f.stale = map[target]struct{}{}
	f.mu.Unlock()
	if len(stale) == 0 {
		return
	}
	if settle != nil {
		settle()
	}
	f.flows.DeleteFunc(func(i *flow.Info) bool {
		if i.Endpoint == 0 {
			return false // to no service's
		}
		k := target{i.Endpoint, i.Orig.Dst, i.Orig.DstPort, i.Orig.Proto}
		if _, ok := stale[k]; ok {
			return true
		}
		k.at = wire.Addr{}
		_, ok := stale[k]
		return ok && f.isNode(i.Orig.Dst.Netip())
	})
}
