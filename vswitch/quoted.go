package vswitch

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// ICMP errors about flows. An error quotes the packet that caused it, with the
// tuple that its own sender saw. Where the flow is rewritten, whoever is to get
// the error knows the packet by its other tuple, so the quoted packet and the
// error's destination are translated as an answer of that flow would be (RFC
// 5508 section 4.2 for the rules; Linux's nf_nat does the same).

// forwardQuoting sends an ICMP error where the flow it speaks of comes from.
func (w *worker) forwardQuoting(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.Fragment {
		return drop.StrayFragment
	}
	b := f.Bytes()
	q := &w.quoted
	if wire.ParseQuoted(b[h.PayloadOff:h.End], q) != drop.None || q.V6 != h.V6 {
		return drop.BadHeader
	}
	// An error goes to the sender of what it quotes, or it is a lie.
	if q.Src != h.Dst {
		return drop.BadHeader
	}
	if hasFlow(q) {
		key := flow.KeyOf(q).Reverse() // the tuple an answer would have
		hash := w.sw.cfg.Flows.Hash(&key)
		f.Hash = uint32(hash)
		if w.sw.cfg.Flows.Lookup(&key, hash, w.tick, &w.hit) {
			if f.Ingress && !w.hitIsOfPeer(f) {
				return drop.NotExposed
			}
			return w.forwardAboutFlow(in, f, h)
		}
	}
	switch w.sw.cfg.FIB.Lookup(&h.Dst).Kind {
	case fib.Port, fib.Peer:
		if f.Ingress {
			return drop.NoFlow
		}
		return w.route(in, f, h)
	}
	return drop.NoFlow
}

// forwardAboutFlow translates and sends an error whose flow is in w.hit.
func (w *worker) forwardAboutFlow(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if w.hit.Rewrite {
		if f.VNet.Flags&frame.NeedsCsum == 0 && !wire.ICMPIntact(f.Bytes(), h) {
			return drop.BadChecksum // it is computed anew below
		}
		w.translateQuoted(f, h)
		w.rewritten = true // that it may leave by the port it came in by
	}
	return w.sendByFlow(in, f, h)
}

// translateQuoted rewrites the quoted packet to the tuple its sender gave it,
// and the error's own addresses: to that sender, and from the flow's other side
// if the error came from there rather than from a router between.
func (w *worker) translateQuoted(f *frame.Frame, h *wire.Headers) {
	b, q, to := f.Bytes(), &w.quoted, &w.hit.To
	quoted := b[h.PayloadOff:h.End]
	src := h.Src
	if src == q.Dst {
		src = to.Src
	}
	rewriteAddresses(quoted, q.V6, &to.Dst, &to.Src)
	l4 := quoted[q.L4Off:]
	switch q.Proto {
	case wire.ProtoICMP, wire.ProtoICMPv6:
		binary.BigEndian.PutUint16(l4[4:], to.SrcPort)
	default:
		binary.BigEndian.PutUint16(l4, to.DstPort)
		binary.BigEndian.PutUint16(l4[2:], to.SrcPort)
	}
	rewriteAddresses(b[h.L3Off:], h.V6, &src, &to.Dst)
	h.Src, h.Dst = src, to.Dst
	wire.PutICMPChecksum(b, h)
	f.VNet = frame.VNet{}
}
