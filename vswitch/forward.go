package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// forward decides one frame with headers h: it is staged on an egress port,
// answered in place (an answer is staged too), or the reason why it goes no
// further is returned. Where it may have a flow, w.hash is that of its tuple.
//
// The order is what makes it safe. First the port's guards, so that nothing is
// believed of a frame that its sender may not say. Then the flow table, before
// the FIB: an answer to a spoofed or translated source must go where its flow
// says, whoever owns that address. Only then the FIB.
func (w *worker) forward(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	w.rewritten = false
	if r := w.guard(in, f, h); r != drop.None {
		return r
	}
	if h.EtherType == wire.TypeARP {
		return w.answerARP(in, f)
	}
	if isNeighborDiscovery(h) {
		return w.answerND(in, f, h)
	}
	if (isLinkLocal4(&h.Dst) || isLinkLocal6(&h.Dst)) && !w.facts.reaches(&h.Dst) {
		return w.forwardLinkLocal(in, f, h)
	}
	if r := checkOffload(f, h); r != drop.None {
		return r
	}
	switch {
	case f.Ingress:
		return w.forwardIngress(in, f, h)
	case h.IsICMPError():
		return w.forwardQuoting(in, f, h)
	case h.LaterFrag && mayHaveFlow(h):
		return w.forwardLater(in, f, h)
	case !hasFlow(h):
		return w.forwardFlowless(in, f, h)
	case h.MoreFrags:
		return w.forwardFirst(in, f, h)
	}
	return w.forwardFlow(in, f, h)
}

// forwardFlow sends a packet with ports by its flow, which is made if there is none.
func (w *worker) forwardFlow(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	w.key = flow.KeyOf(h)
	if !w.lookup() || w.hit.Reopens(h.TCPFlags) {
		if done, r := w.admit(in, f, h); done {
			return r
		}
	}
	f.Hash = uint32(w.hash)
	w.sw.cfg.Flows.Track(&w.hit, h.TCPFlags, 1, f.Len(), w.tick)
	if w.hit.Rewrite {
		if h.Fragment && !w.rewritesInPieces() {
			return drop.StrayFragment
		}
		rewrite(f, h, &w.hit.To)
		w.rewritten = true
	}
	return w.sendByFlow(in, f, h)
}

// sendByFlow sends a packet that has the tuple its flow, w.hit, gave it.
func (w *worker) sendByFlow(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if w.hit.Flags != 0 {
		return w.sendFlagged(in, f, h)
	}
	return w.route(in, f, h)
}

// route sends a packet by the FIB, its destination being final.
func (w *worker) route(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	hop := w.sw.cfg.FIB.Lookup(&h.Dst)
	switch hop.Kind {
	case fib.Port:
		if int(hop.Index) < len(w.ports) {
			return w.send(in, w.ports[hop.Index], f, h)
		}
	case fib.Peer:
		if in.kind == PortTunnel {
			return drop.Reflected // nodes are no transit: a loop would have no end but the TTL
		}
		f.Peer = hop.Index
		if in.kind == PortGateway { // which may speak for a client outside
			f.Ingress = w.sw.cfg.FIB.Lookup(&h.Src).Kind == fib.Egress
		}
		return w.send(in, w.sw.tunnel.Load(), f, h)
	case fib.Egress, fib.Node:
		if in.kind == PortPod {
			return w.send(in, w.sw.gateway.Load(), f, h)
		}
	case fib.Router:
		return w.answerRouter(in, f, h)
	case fib.VIP:
		return w.refuse(in, f, h, drop.NoService)
	}
	return w.unreachable(in, f, h, drop.NoRoute)
}

// send hands a packet to its egress port as a router does: one hop fewer, and
// not beyond the port's MTU.
func (w *worker) send(in, out *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	switch {
	case out == nil:
		return drop.NotAttached
	case out == in && !w.rewritten:
		return drop.Reflected
	case h.TTL <= 1 && in.kind != PortGateway:
		return w.timeExceeded(in, f, h)
	}
	mtu := out.mtuTo(f.Peer)
	tooBig := packetBytes(f, h) > mtu
	if tooBig && !canCut(f, h) {
		return w.tooBig(in, f, h, mtu)
	}
	b := f.Bytes()
	if in.kind != PortGateway { // netstack is this node's own: its packets have made no hop yet
		decrementTTL(b, h)
	}
	copy(b, out.mac[:])
	copy(b[6:], GatewayMAC[:])
	if tooBig {
		return w.cut(in, out, f, h, mtu)
	}
	w.stage(out, f)
	return drop.None
}

// lookup finds the flow of w.key, whose hash is w.hash, and leaves it in w.hit.
func (w *worker) lookup() bool {
	return w.sw.cfg.Flows.Lookup(&w.key, w.hash, w.tick, &w.hit)
}

// hasFlow reports whether the packet is of a kind that the flow table holds.
// Fragments behind the first are not, as they carry no ports (fragment.go).
func hasFlow(h *wire.Headers) bool {
	if !h.HasL4 {
		return false
	}
	switch h.Proto {
	case wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP:
		return true
	}
	return h.IsEcho()
}

// forwardFlowless sends what has no flow, other protocols and their fragments, by
// the FIB alone. Nothing could rewrite it, so it can't be for a VIP.
func (w *worker) forwardFlowless(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if r := martianTarget(&h.Dst); r != drop.None {
		return r
	}
	if w.sw.cfg.FIB.Lookup(&h.Dst).Kind == fib.VIP && h.Fragment {
		return drop.StrayFragment
	}
	return w.route(in, f, h)
}

// packetBytes is the size of the largest IP packet the frame stands for.
func packetBytes(f *frame.Frame, h *wire.Headers) int {
	if f.VNet.IsGSO() {
		return h.PayloadOff - h.L3Off + int(f.VNet.GSOSize)
	}
	return h.End - h.L3Off
}

// checkOffload refuses metadata that contradicts the headers: what is passed on
// to another kernel, or completed here, must be true. A checksum "field" placed
// over an address or a port would change it behind the guards' back.
func checkOffload(f *frame.Frame, h *wire.Headers) drop.Reason {
	v := &f.VNet
	// A fragment has only a part of what its datagram's checksum covers.
	if v.Flags&frame.NeedsCsum != 0 && (h.Fragment || !checksumPlaced(v, h)) {
		return drop.BadOffload
	}
	if !v.IsGSO() {
		return drop.None
	}
	ok := v.Flags&frame.NeedsCsum != 0 && int(v.CsumStart) == h.L4Off && v.GSOSize != 0 && h.HasL4
	switch v.GSOType.Kind() {
	case frame.GSOTCPv4:
		ok = ok && h.Proto == wire.ProtoTCP && !h.V6
	case frame.GSOTCPv6:
		ok = ok && h.Proto == wire.ProtoTCP && h.V6
	case frame.GSOUDPL4:
		ok = ok && h.Proto == wire.ProtoUDP
	default:
		ok = false
	}
	if !ok {
		return drop.BadOffload
	}
	return drop.None
}

// checksumPlaced reports whether a partial checksum is the transport's own, or
// one of a packet inside its payload (a tunnel of the pod's).
func checksumPlaced(v *frame.VNet, h *wire.Headers) bool {
	if int(v.CsumStart) != h.L4Off {
		return int(v.CsumStart) >= h.PayloadOff
	}
	switch h.Proto {
	case wire.ProtoTCP:
		return v.CsumOffset == tcpChecksumOff
	case wire.ProtoUDP:
		return v.CsumOffset == udpChecksumOff
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return v.CsumOffset == icmpChecksumOff
	}
	return !h.HasL4
}
