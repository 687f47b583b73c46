package vswitch

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

// Ports that only a DHCP server sends from (RFC 2131 section 4.1, RFC 8415 section 7.2).
const (
	dhcpServerPort   = 67
	dhcpv6ServerPort = 547
)

// guard judges what a frame says of its sender.
func (w *worker) guard(in *port, f *frame.Frame, h *wire.Headers) drop.Reason {
	switch in.kind {
	case PortPod:
		return guardPod(in, f.Bytes(), h)
	case PortTunnel:
		return w.guardTunnel(f, h)
	}
	return drop.None
}

// guardPod holds a pod to its own MAC and addresses. Neighbour discovery may
// come from its link-local address as well, or from none while it looks for
// duplicates (RFC 4862 section 5.4.2); those packets never leave the switch.
func guardPod(in *port, b []byte, h *wire.Headers) drop.Reason {
	if frame.MAC(b[6:12]) != in.mac {
		return drop.SpoofedMAC
	}
	if h.EtherType == wire.TypeARP {
		return guardARP(in, b[h.L3Off:])
	}
	if isNeighborDiscovery(h) {
		return guardND(in, b, h)
	}
	if !in.owns(&h.Src) {
		return notItsSource(h)
	}
	if frame.MAC(b[:6]) != GatewayMAC {
		if b[0]&1 != 0 {
			return multicastReason(h)
		}
		return drop.WrongGateway
	}
	if h.Proto == wire.ProtoUDP && h.HasL4 && isDHCPServer(h) {
		return drop.RogueDHCP
	}
	return drop.None
}

// notItsSource tells apart the sources that aren't the pod's: what its kernel
// says by itself to multicast groups (MLD, mDNS from the link-local address, DHCP
// from no address), what no wire may carry, and the rest, which is a lie.
func notItsSource(h *wire.Headers) drop.Reason {
	switch {
	case h.V6 && h.Dst[0] == 0xff && (isLinkLocal6(&h.Src) || h.Src == wire.Addr{}):
		return multicastReason(h)
	case !h.V6 && h.Src.V4() == 0 && h.Dst.V4() == 0xffffffff:
		return multicastReason(h)
	case isMartianSource(&h.Src):
		return drop.MartianSource
	}
	return drop.SpoofedIP
}

func multicastReason(h *wire.Headers) drop.Reason {
	if h.Proto == wire.ProtoUDP && h.HasL4 && isDHCPServer(h) {
		return drop.RogueDHCP
	}
	return drop.Multicast
}

func isDHCPServer(h *wire.Headers) bool {
	if h.V6 {
		return h.SrcPort == dhcpv6ServerPort && h.DstPort == 546
	}
	return h.SrcPort == dhcpServerPort && h.DstPort == 68
}

// guardARP checks the sender fields of an ARP packet (RFC 826):
//
//	 0         2         4     5     6        8           14         18          24
//	+---------+---------+-----+-----+--------+-----------+----------+-----------+----------+
//	| hw type | proto   | 6   | 4   | opcode | sender MAC| sender IP| target MAC| target IP|
//	+---------+---------+-----+-----+--------+-----------+----------+-----------+----------+
//
// A probe has no sender address (RFC 5227 section 2.1.1).
func guardARP(in *port, arp []byte) drop.Reason {
	if len(arp) < wire.ARPBytes {
		return drop.Truncated
	}
	if binary.BigEndian.Uint64(arp)&^0xffff != 0x0001_0800_0604_0000 {
		return drop.BadHeader
	}
	sender := wire.AddrFrom4(arp[14:])
	if frame.MAC(arp[8:14]) != in.mac || sender.V4() != 0 && !in.owns(&sender) {
		return drop.SpoofedARP
	}
	return drop.None
}

func isNeighborDiscovery(h *wire.Headers) bool {
	return h.V6 && h.HasL4 && h.Proto == wire.ProtoICMPv6 &&
		h.ICMPType >= wire.ICMPv6RouterSolicit && h.ICMPType <= wire.ICMPv6Redirect
}

// guardND checks what neighbour discovery messages claim (RFC 4861 section 4).
// All of them have a hop limit of 255 (section 11.2), else they came from afar.
func guardND(in *port, b []byte, h *wire.Headers) drop.Reason {
	switch h.ICMPType {
	case wire.ICMPv6RouterAdvert, wire.ICMPv6Redirect:
		return drop.RogueRA
	}
	if h.TTL != 255 || h.Fragment {
		return drop.BadHeader
	}
	fromSelf := in.owns(&h.Src) || isLinkLocal6(&h.Src)
	if !fromSelf && h.Src != (wire.Addr{}) {
		return drop.SpoofedND
	}
	icmp := b[h.L4Off:h.End]
	switch h.ICMPType {
	case wire.ICMPv6RouterSolicit:
		return guardNDOptions(in, icmp[8:])
	case wire.ICMPv6NeighborAdvert:
		if len(icmp) < 24 {
			return drop.Truncated
		}
		target := wire.Addr(icmp[8:24])
		if !in.owns(&target) && !(isLinkLocal6(&target) && target == h.Src) {
			return drop.SpoofedND
		}
	case wire.ICMPv6NeighborSolicit:
		if len(icmp) < 24 {
			return drop.Truncated
		}
	}
	return guardNDOptions(in, icmp[24:])
}

// guardNDOptions checks that every link-layer address option (RFC 4861 section
// 4.6.1) is the port's own.
func guardNDOptions(in *port, opts []byte) drop.Reason {
	for len(opts) > 0 {
		if len(opts) < 8 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return drop.BadHeader
		}
		if (opts[0] == 1 || opts[0] == 2) && frame.MAC(opts[2:8]) != in.mac {
			return drop.SpoofedND
		}
		opts = opts[int(opts[1])*8:]
	}
	return drop.None
}

// guardTunnel holds each member to the prefixes that are routed to it. A flow
// may answer to an address beyond them, but no packet may come from there.
func (w *worker) guardTunnel(f *frame.Frame, h *wire.Headers) drop.Reason {
	if h.EtherType == wire.TypeARP {
		return drop.NotForUs
	}
	if f.Ingress {
		return w.guardIngress(h)
	}
	hop := w.sw.cfg.FIB.Lookup(&h.Src)
	if hop.Kind != fib.Peer || hop.Index != f.Peer {
		return drop.ForeignSource
	}
	return drop.None
}

// isMartianSource reports addresses that no packet may come from (RFC 6890,
// RFC 1122 section 3.2.1.3, RFC 4291 section 2.5): unspecified, loopback,
// link-local, multicast, broadcast.
func isMartianSource(a *wire.Addr) bool {
	if a.Is4() {
		v := a.V4()
		return v>>24 == 0 || v>>24 == 127 || v>>16 == 0xa9fe || v>>28 >= 0xe
	}
	return isLoopback6OrZero(a) || isLinkLocal6(a) || a[0] == 0xff
}

// martianTarget is drop.MartianTarget for addresses that no packet may go to.
func martianTarget(a *wire.Addr) drop.Reason {
	if a.Is4() {
		v := a.V4()
		if v>>28 == 0xe || v == 0xffffffff {
			return drop.Multicast
		}
		if v>>24 == 0 || v>>24 == 127 || v>>28 == 0xf {
			return drop.MartianTarget
		}
		return drop.None
	}
	if a[0] == 0xff {
		return drop.Multicast
	}
	// IPv4-mapped and -compatible addresses never travel (RFC 4291 section 2.5.5).
	if binary.BigEndian.Uint64(a[:8]) == 0 && binary.BigEndian.Uint32(a[8:12]) == 0 {
		return drop.MartianTarget
	}
	return drop.None
}

func isLoopback6OrZero(a *wire.Addr) bool {
	return binary.BigEndian.Uint64(a[:8]) == 0 && binary.BigEndian.Uint64(a[8:])>>1 == 0
}

func isLinkLocal6(a *wire.Addr) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

func isLinkLocal4(a *wire.Addr) bool { return a.Is4() && a.V4()>>16 == 0xa9fe }
