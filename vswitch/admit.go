package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// The first packet of a flow. Every flow gets an entry, direct ones too: a pod
// may speak from one port to a VIP and straight to the endpoint behind it, and
// then both answers look alike. Whichever comes second gets another source port.

const (
	// sourcePortTries bounds the search for a free source port. With half the
	// range taken, sixteen fail once in 65,536 times.
	sourcePortTries = 16
	// The range of substitute ports, Linux's ip_local_port_range.
	firstSourcePort = 32768
	sourcePorts     = 60999 - firstSourcePort + 1
)

// admit judges the packet in hand, which has no flow, and installs one. With
// drop.None and !done the flow is in w.hit and the packet goes on; done means
// that nothing is left to do: it was answered.
func (w *worker) admit(in *port, f *frame.Frame, h *wire.Headers) (done bool, r drop.Reason) {
	if r := martianTarget(&h.Dst); r != drop.None {
		return true, r
	}
	spec := flow.Spec{Orig: w.key, Reply: w.key.Reverse(), Owner: in.owner}
	hop := w.sw.cfg.FIB.Lookup(&h.Dst)
	switch hop.Kind {
	case fib.VIP:
		return w.admitVIP(in, f, h, &spec)
	case fib.Router:
		return true, w.answerRouter(in, f, h)
	case fib.Port:
		if hop.Index == in.id {
			return true, drop.Reflected
		}
	case fib.Peer:
		if in.kind == PortTunnel {
			return true, drop.Reflected
		}
	case fib.Node, fib.Egress:
		if in.kind == PortTunnel && hop.Kind == fib.Egress {
			return true, w.refuseStray(in, f, h)
		}
		if in.kind != PortPod {
			return true, w.unreachable(in, f, h, drop.NoRoute)
		}
		if hop.Kind == fib.Node {
			if w.facts.isTunnel(h.Proto, h.DstPort) {
				return true, drop.TunnelPort
			}
			if ep, r := w.sw.cfg.Services.Pick(&w.key, h); r != drop.NoService {
				return w.admitTo(in, f, h, &spec, ep, r)
			}
		}
	default:
		return true, w.unreachable(in, f, h, drop.NoRoute)
	}
	if f.Ingress {
		spec.Flags |= flow.ReplyToPeer
		spec.Owner = uint64(f.Peer)
	}
	if in.kind == PortGateway {
		// The netstack may speak with a client's address, or the router's.
		spec.Flags |= flow.ReplyToGateway
	}
	r = w.install(&spec, h)
	return r != drop.None, r
}

// admitVIP finds the endpoint for a flow to a service, or refuses it at once.
func (w *worker) admitVIP(in *port, f *frame.Frame, h *wire.Headers, spec *flow.Spec) (done bool, r drop.Reason) {
	services := w.sw.cfg.Services
	if h.IsEcho() {
		if services.HasVIP(&h.Dst) {
			return true, w.answerEcho(in, f, h)
		}
		return true, w.unreachable(in, f, h, drop.NoService)
	}
	ep, r := services.Pick(&w.key, h)
	return w.admitTo(in, f, h, spec, ep, r)
}

// admitTo installs a flow to the endpoint that a service picked, or refuses it
// for the reason the service gave.
func (w *worker) admitTo(in *port, f *frame.Frame, h *wire.Headers, spec *flow.Spec, ep flow.Endpoint, r drop.Reason) (bool, drop.Reason) {
	const connectBits = wire.SYN | wire.ACK | wire.RST | wire.FIN
	if h.Proto == wire.ProtoTCP && h.TCPFlags&connectBits != wire.SYN {
		return true, w.refuse(in, f, h, drop.NoFlow)
	}
	if r != drop.None {
		return true, w.refuse(in, f, h, r)
	}
	spec.Endpoint = ep.ID
	if ep.Gateway {
		spec.Flags |= flow.ToGateway
		r = w.install(spec, h)
		return r != drop.None, r
	}
	spec.Reply.Src, spec.Reply.SrcPort = ep.Addr, ep.Port
	if w.facts.isTunnel(h.Proto, ep.Port) && w.sw.cfg.FIB.Lookup(&ep.Addr).Kind == fib.Node {
		return true, drop.TunnelPort // no service makes a way round the guard
	}
	if ep.Addr == h.Src {
		// A pod that reaches itself gets no answer from its own kernel for a
		// packet from its own address: the router stands in.
		router := w.facts.router(h.V6)
		if router == nil {
			return true, drop.NoRoute
		}
		spec.Reply.Dst = *router
	}
	r = w.install(spec, h)
	return r != drop.None, r
}

// install puts the flow into the table and leaves it in w.hit.
func (w *worker) install(spec *flow.Spec, h *wire.Headers) drop.Reason {
	flows := w.sw.cfg.Flows
	for range sourcePortTries {
		result := flows.Insert(spec, h.TCPFlags, w.tick)
		switch result {
		case flow.Inserted, flow.Exists:
			if w.lookup() {
				return drop.None
			}
			return drop.FlowTableFull // gone again at once: another worker needed the room
		case flow.ReplyTaken:
			w.changeSourcePort(spec)
		default:
			return w.withoutEntry(spec, result)
		}
	}
	return drop.NoSourcePort
}

// withoutEntry lets a direct flow pass when there is no room to remember it.
func (w *worker) withoutEntry(spec *flow.Spec, result flow.Result) drop.Reason {
	if spec.Reply == spec.Orig.Reverse() && spec.Flags == 0 {
		w.hit = flow.Hit{}
		return drop.None
	}
	if result == flow.OwnerFull {
		return drop.PodFlowCap
	}
	return drop.FlowTableFull
}

// changeSourcePort tries another port, or echo identifier, for the flow to come from.
func (w *worker) changeSourcePort(spec *flow.Spec) {
	port := uint16(firstSourcePort + w.rng.IntN(sourcePorts))
	spec.Reply.DstPort = port
	if spec.Orig.Proto == wire.ProtoICMP || spec.Orig.Proto == wire.ProtoICMPv6 {
		spec.Reply.SrcPort = port
	}
}
