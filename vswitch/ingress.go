package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// Clients outside the cluster whose pod is on another node.
//
//	client ── node A: netstack ── switch ──(ingress VNI)──> node B: switch ── pod
//	client <─ node A: netstack <─ switch <──(ordinary VNI)── node B: switch <─ pod
//
// A's netstack speaks to the pod with the client's own address, which no member
// may otherwise send from. So such frames are marked (frame.Ingress), and B takes
// a marked frame only from a source outside the cluster, to a pod of its own, at a
// port that a service offers to outside clients through other nodes. The flow it
// makes names the member in its owner (flow.Spec.Owner) and sends the pod's answers
// there (flow.ReplyToPeer); those come from a pod of B's, as all that B sends.
//
// A marked frame of a flow that something else owns, another member or B itself,
// has its source port taken: the client's address is promised, its port is not, so
// it is refused and A's netstack tries again from another.

// forwardIngress sends a marked frame that came by the tunnel.
func (w *worker) forwardIngress(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	switch {
	case h.IsICMPError():
		return w.forwardQuoting(in, f, h)
	case h.LaterFrag && mayHaveFlow(h):
		return w.forwardLater(in, f, h)
	case !hasFlow(h) || h.IsEcho():
		return drop.NotExposed
	}
	w.key = flow.KeyOf(h)
	if w.lookup() && !w.hit.Reopens(h.TCPFlags) {
		if !w.hitIsOfPeer(f) {
			return w.refuseTaken(in, f, h)
		}
	} else if !w.sw.cfg.Services.Exposed(&h.Dst, h.DstPort, h.Proto) {
		return drop.NotExposed
	}
	if h.MoreFrags {
		return w.forwardFirst(in, f, h)
	}
	return w.forwardFlow(in, f, h)
}

// guardIngress judges the addresses of a marked frame.
func (w *worker) guardIngress(h *wire.Headers) drop.Reason {
	routes := w.sw.cfg.FIB
	switch {
	case isMartianSource(&h.Src) || routes.Lookup(&h.Src).Kind != fib.Egress:
		return drop.IngressSource
	case routes.Lookup(&h.Dst).Kind != fib.Port:
		return drop.NotExposed
	}
	return drop.None
}

// hitIsOfPeer reports whether the flow in w.hit came in by the member that sent
// the marked frame, and the frame goes the way its first packet went.
func (w *worker) hitIsOfPeer(f *frame.Frame) bool {
	return w.hit.Flags&flow.ReplyToPeer != 0 && w.hit.Dir == flow.Forward &&
		w.sw.cfg.Flows.Owner(&w.hit) == uint64(f.Peer)
}

// refuseTaken tells a netstack, of this node or of another, that its source port
// towards this endpoint is taken: by a reset, or by the ICMP error that no host
// sends of itself.
func (w *worker) refuseTaken(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	switch {
	case h.Proto == wire.ProtoTCP:
		return w.refuse(in, f, h, drop.SourceTaken)
	case h.V6:
		return w.icmpError(in, f, h, drop.SourceTaken, wire.ICMPv6Unreachable, 1, 0)
	}
	return w.icmpError(in, f, h, drop.SourceTaken, wire.ICMPUnreachable, 13, 0)
}

// refuseStray answers a pod of another node that speaks to a client whose
// connection this node has forgotten. A reset comes from the client's address.
func (w *worker) refuseStray(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	r := w.refuse(in, f, h, drop.NoFlow)
	f.Ingress = r == drop.None && h.Proto == wire.ProtoTCP
	return r
}

// sendFlagged sends a packet whose flow does not leave it to the FIB alone.
func (w *worker) sendFlagged(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	switch {
	case w.hit.ToGateway():
		return w.send(in, w.sw.gateway.Load(), f, h)
	case w.hit.Flags&flow.ReplyToPeer == 0:
		return w.route(in, f, h)
	case w.hit.Dir == flow.Reply:
		if in.kind == PortTunnel {
			return drop.Reflected
		}
		f.Peer = uint32(w.sw.cfg.Flows.Owner(&w.hit))
		return w.send(in, w.sw.tunnel.Load(), f, h)
	case in.kind == PortGateway:
		return w.refuseTaken(in, f, h)
	}
	return w.route(in, f, h)
}
