package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Frames the switch itself sends. The frame in hand is finished with, so it
// becomes the answer and goes back by the port it came in by; a packet from
// another node goes back to the member that sent it.
//
// An answer that reports a loss counts the loss and returns drop.None, since the
// frame lives on as the answer. Errors are limited in rate, are not sent about
// errors, nor about what had no one sender or is a later fragment (RFC 1812
// section 4.3.2.7, RFC 4443 section 2.4 e), and come from the node's router address.

const maxErrorBytes = wire.MaxICMPv6ErrorBytes

// Answers a port may get in a burst, and each tick. One worker's share of a port
// may thus have 1,000 a second, Linux's icmp_msgs_per_sec.
const (
	answersBurst   = 200
	answersPerTick = 100
)

// limiter is a token bucket refilled by ticks, used by one worker.
type limiter struct {
	tokens, tick uint32
	_            [56]byte // one worker's bucket on its own cache line
}

func (l *limiter) allow(tick uint32) bool {
	if tick != l.tick {
		refill := min(uint64(tick-l.tick)*answersPerTick, answersBurst)
		l.tokens = min(l.tokens+uint32(refill), answersBurst)
		l.tick = tick
	}
	if l.tokens == 0 {
		return false
	}
	l.tokens--
	return true
}

// reply sends the frame, now an answer, back to where the original came from.
func (w *worker) reply(in *port, f *frame.Frame) {
	b := f.Bytes()
	to := in.mac
	if to.IsZero() {
		to = frame.MAC(b[6:12]) // the tunnel and the gateway write their own
	}
	copy(b, to[:])
	copy(b[6:], GatewayMAC[:])
	w.stage(in, f)
}

// replace makes f the IP packet of n bytes in scratch, behind the old frame's
// Ethernet header.
func (w *worker) replace(f *frame.Frame, v6 bool, n int) {
	peer, hash := f.Peer, f.Hash
	b := w.scratch[:frame.EthernetBytes+n]
	copy(b, f.Bytes()[:12])
	b[12], b[13] = 0x08, 0x00
	if v6 {
		b[12], b[13] = 0x86, 0xdd
	}
	f.Set(b)
	f.Peer, f.Hash = peer, hash
}

// answerARP answers for the gateway and nothing else.
func (w *worker) answerARP(in *port, f *frame.Frame) drop.Reason {
	arp := f.Bytes()[wire.EthernetBytes:]
	asked := wire.AddrFrom4(arp[24:])
	if in.kind != PortPod || wire.ARPOp(arp) != 1 || asked != gatewayAddr4 {
		return drop.NotForUs
	}
	if !in.answers[w.id].allow(w.tick) {
		return drop.ReplyLimited
	}
	wire.TurnARP(arp, GatewayMAC)
	w.reply(in, f)
	return drop.None
}

var (
	gatewayAddr4 = wire.AddrFrom(GatewayIPv4)
	gatewayAddr6 = wire.AddrFrom(GatewayIPv6)
)

// answerND answers solicitations for the gateway. A pod that looks for another
// address hears nothing: there are no neighbours. Router solicitations too go
// without answer, since the plugin has configured the pod.
func (w *worker) answerND(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	b := f.Bytes()
	if in.kind != PortPod || h.ICMPType != wire.ICMPv6NeighborSolicit ||
		wire.Addr(b[h.L4Off+8:h.L4Off+24]) != gatewayAddr6 {
		return drop.NotForUs
	}
	if !wire.ICMPIntact(b, h) {
		return drop.BadChecksum
	}
	if !in.answers[w.id].allow(w.tick) {
		return drop.ReplyLimited
	}
	n := wire.PutNeighborAdvert(w.scratch[frame.EthernetBytes:], h, gatewayAddr6, GatewayMAC)
	w.replace(f, true, n)
	w.reply(in, f)
	return drop.None
}

// forwardLinkLocal handles packets to link-local addresses that lead nowhere else:
// only the gateway's exists, and it answers pings.
func (w *worker) forwardLinkLocal(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.Dst == gatewayAddr4 || h.Dst == gatewayAddr6 {
		return w.answerRouter(in, f, h)
	}
	return drop.MartianTarget
}

// answerRouter handles packets to the node's own addresses that belong to no
// flow: it answers pings and refuses the rest.
func (w *worker) answerRouter(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.IsEcho() {
		return w.answerEcho(in, f, h)
	}
	return w.refuse(in, f, h, drop.ReservedRouter)
}

// answerEcho turns a request into its reply. A reply that nobody here waits for
// is dropped.
func (w *worker) answerEcho(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.ICMPType != wire.ICMPEcho && h.ICMPType != wire.ICMPv6Echo {
		return drop.NoFlow
	}
	if h.Fragment {
		return drop.StrayFragment
	}
	if f.VNet.Flags&frame.NeedsCsum == 0 && !wire.ICMPIntact(f.Bytes(), h) {
		return drop.BadChecksum
	}
	wire.TurnEcho(f.Bytes(), h)
	f.VNet = frame.VNet{}
	w.reply(in, f)
	return drop.None
}

// refuse answers a packet to a port that nobody serves, as the addressed host
// would: a reset for TCP, "port unreachable" for the rest.
func (w *worker) refuse(in *port, f *frame.Frame, h *wire.Headers, r drop.Reason) drop.Reason {
	if h.Proto != wire.ProtoTCP || !h.HasL4 || h.Fragment {
		if h.V6 {
			return w.icmpError(in, f, h, r, wire.ICMPv6Unreachable, 4, 0)
		}
		return w.icmpError(in, f, h, r, wire.ICMPUnreachable, 3, 0)
	}
	if h.TCPFlags&wire.RST != 0 {
		return r
	}
	if !in.answers[w.id].allow(w.tick) {
		return drop.ReplyLimited
	}
	w.restore(f, h)
	w.lost(in, f, r)
	n := wire.PutTCPReset(w.scratch[frame.EthernetBytes:], f.Bytes(), h)
	w.replace(f, h.V6, n)
	w.reply(in, f)
	return drop.None
}

func (w *worker) unreachable(in *port, f *frame.Frame, h *wire.Headers, r drop.Reason) drop.Reason {
	if h.V6 {
		return w.icmpError(in, f, h, r, wire.ICMPv6Unreachable, 0, 0)
	}
	return w.icmpError(in, f, h, r, wire.ICMPUnreachable, 1, 0)
}

func (w *worker) timeExceeded(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.V6 {
		return w.icmpError(in, f, h, drop.HopLimit, wire.ICMPv6TimeExceeded, 0, 0)
	}
	return w.icmpError(in, f, h, drop.HopLimit, wire.ICMPTimeExceeded, 0, 0)
}

// tooBig tells the sender the MTU it must keep to (RFC 1191 section 4, RFC 8201).
func (w *worker) tooBig(in *port, f *frame.Frame, h *wire.Headers, mtuBytes int) drop.Reason {
	if h.V6 {
		return w.icmpError(in, f, h, drop.TooBig, wire.ICMPv6TooBig, 0, uint32(mtuBytes))
	}
	return w.icmpError(in, f, h, drop.TooBig, wire.ICMPUnreachable, 4, uint32(mtuBytes))
}

// icmpError answers with an ICMP error, where one may be sent; it counts r. The
// netstack hears of nothing but packets that are too large, since it must learn the
// path's MTU or its connections stall, and of a source port that is taken.
func (w *worker) icmpError(in *port, f *frame.Frame, h *wire.Headers, r drop.Reason, icmpType, code uint8, info uint32) drop.Reason {
	router := w.facts.router(h.V6)
	unheard := in.kind == PortGateway && r != drop.TooBig && r != drop.SourceTaken
	if router == nil || h.IsICMPError() || h.LaterFrag || isMartianSource(&h.Src) || unheard {
		return r
	}
	if !in.answers[w.id].allow(w.tick) {
		return drop.ReplyLimited
	}
	w.restore(f, h)
	w.lost(in, f, r)
	n := wire.PutICMPError(w.scratch[frame.EthernetBytes:], f.Bytes(), h, *router, icmpType, code, info)
	w.replace(f, h.V6, n)
	w.reply(in, f)
	return drop.None
}

// restore gives a rewritten packet its first tuple back: its sender must
// recognise what an answer quotes.
func (w *worker) restore(f *frame.Frame, h *wire.Headers) {
	if w.rewritten {
		rewrite(f, h, &w.key)
		w.rewritten = false
	}
}
