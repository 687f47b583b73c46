package gateway

import (
	"net/netip"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// Looking: what the gateway would decide, by the functions that decide, without
// deciding it. `vswitch trace` asks.

// Look is what Pick would answer, and by what.
type Look struct {
	Endpoint flow.Endpoint
	Reason   drop.Reason // why there is no endpoint; None: there is
	Service  ServiceKey  // whose address it is; zero: no service's
	DNS      bool        // the node's own DNS server answers there
	Proxy    bool        // the gateway terminates the connection, Choices say to whom it goes on
	Choices  []flow.Endpoint
	// Affinity: the service remembers its clients. Then Kept says whether it
	// remembers this one, which gets no other than Endpoint.
	Affinity, Kept bool
}

// Look gives what Pick would. Where endpoints are drawn, Endpoint is one of
// those that could be.
func (g *Gateway) Look(k *flow.Key) Look {
	p := g.poolFor(k)
	l := Look{}
	l.Endpoint, l.Reason = g.pickFrom(p, k, false)
	if p == nil {
		l.DNS = l.Reason == drop.None
		return l
	}
	l.Service, l.Proxy, l.Choices = p.service, p.proxy != nil, p.backends
	if p.pins != nil {
		l.Affinity, l.Kept = true, p.pins.remembers(p, &k.Src, g.tick.Load())
	}
	return l
}

// LookOutside says whether a pod's packet that the switch gives to the gateway would
// be sent on by a host socket, and to which address; the reason is why not. What
// the host's network makes of it nobody can tell beforehand.
func (g *Gateway) LookOutside(h *wire.Headers) (to netip.Addr, _ drop.Reason) {
	k := flow.KeyOf(h)
	to, ok := g.policy.egress(k.Dst.Netip())
	switch {
	case h.Proto == wire.ProtoTCP:
		r, _ := g.judgeConnection(&k)
		return to, r
	case h.Proto != wire.ProtoUDP && !isEchoRequest(h):
		return to, drop.UnsupportedL4
	case !ok:
		return to, drop.EgressDenied
	}
	return to, drop.None
}
