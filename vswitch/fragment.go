package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

// Fragments. A datagram's first fragment has the ports, finds or makes the flow
// and leaves by it like any packet; its tuple is noted in flow.Fragments, for
// all workers. Later fragments take the tuple from there and then go the same way:
// to the endpoint that the flow has, or back from it as from the VIP. Only
// their addresses are rewritten. The transport checksum, which covers the whole datagram,
// lies in the first fragment and is corrected there by the difference.
//
// A fragment that comes before the first waits for it (spares.go): a bounded
// number of frames, for a second. Where there is no room it goes by the FIB as one of
// a direct flow would, unless it is for a VIP. Nothing is put together here:
// overlaps, duplicates and gaps are the receiver's to judge.

// mayHaveFlow reports whether a later fragment may belong to a datagram of a kind
// that the flow table holds. IPv6 extension headers may hide any.
func mayHaveFlow(h *wire.Headers) bool {
	switch h.Proto {
	case wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP:
		return true
	case wire.ProtoICMP:
		return !h.V6
	case wire.ProtoICMPv6, wire.ProtoDstOpts, wire.ProtoHopByHop, wire.ProtoRouting, wire.ProtoAH:
		return h.V6
	}
	return false
}

// forwardFirst sends the first fragment of a datagram, and those that waited for it.
func (w *worker) forwardFirst(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	first, d := *h, datagramOf(h)
	r := w.forwardFlow(in, f, h)
	if r != drop.None {
		return r
	}
	w.sw.cfg.Flows.Fragments.Note(&first, w.tick)
	w.release(in, &d)
	return drop.None
}

// forwardLater sends a fragment behind the first by what the first one said.
func (w *worker) forwardLater(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if r := martianTarget(&h.Dst); r != drop.None {
		return r
	}
	fragments := w.sw.cfg.Flows.Fragments
	if !fragments.Find(h, w.tick, &w.key) {
		if w.hold(in, f, h) {
			return drop.None
		}
		if f.Ingress {
			return drop.StrayFragment
		}
		return w.forwardFlowless(in, f, h)
	}
	if s := in.spares[w.id]; s != nil && s.held > 0 { // the first came to another worker
		d := datagramOf(h)
		w.release(in, &d)
		w.rewritten = false
		if !fragments.Find(h, w.tick, &w.key) {
			return drop.StrayFragment // replaced this moment
		}
	}
	return w.forwardRest(in, f, h)
}

// forwardRest sends a later fragment whose datagram has the tuple w.key.
func (w *worker) forwardRest(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	w.hash = w.sw.cfg.Flows.Hash(&w.key)
	f.Hash = uint32(w.hash)
	if !w.lookup() {
		// A direct flow that found no room in the table, or one that has ended.
		if f.Ingress || w.sw.cfg.FIB.Lookup(&h.Dst).Kind == fib.VIP {
			return drop.StrayFragment
		}
		return w.route(in, f, h)
	}
	if f.Ingress && in.kind == PortTunnel && !w.hitIsOfPeer(f) {
		return drop.StrayFragment
	}
	w.sw.cfg.Flows.Track(&w.hit, 0, 1, f.Len(), w.tick)
	if w.hit.Rewrite {
		if !w.rewritesInPieces() {
			return drop.StrayFragment
		}
		to := &w.hit.To
		rewriteAddresses(f.Bytes()[h.L3Off:], h.V6, &to.Src, &to.Dst)
		h.Src, h.Dst = to.Src, to.Dst
		w.rewritten = true
	}
	return w.sendByFlow(in, f, h)
}

// rewritesInPieces reports whether the flow in w.hit can be rewritten one fragment at a
// time. SCTP's checksum can't be corrected by the difference without the whole
// packet, and covers the ports but not the addresses (RFC 9260 section 6.8).
func (w *worker) rewritesInPieces() bool {
	return w.key.Proto != wire.ProtoSCTP || w.key.SrcPort == w.hit.To.SrcPort && w.key.DstPort == w.hit.To.DstPort
}
