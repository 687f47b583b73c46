// Package packetline describes a frame in one line of text, much as tcpdump does:
// addresses and ports, what the transport header says, and the length of what it
// carries. It looks into no application protocol.
package packetline

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
)

// Of describes a frame from its Ethernet header on. wireBytes is its length, of
// which b may be the beginning only.
func Of(b []byte, wireBytes int) string {
	if wireBytes > len(b) && wireBytes <= wire.EthernetBytes+65535+wire.IPv6Bytes {
		whole := make([]byte, wireBytes) // lengths are judged by what was there
		copy(whole, b)
		b = whole
	}
	var h wire.Headers
	if r := wire.Parse(b, &h); r != drop.None {
		return fmt.Sprintf("%s, %d bytes", malformed(b, r), wireBytes)
	}
	if h.EtherType == wire.TypeARP {
		return arp(b[h.L3Off:])
	}
	version := "IP"
	if h.V6 {
		version = "IP6"
	}
	return fmt.Sprintf("%s %s > %s: %s%s", version, place(h.Src, h.SrcPort, &h), place(h.Dst, h.DstPort, &h), transport(b, &h), fragment(&h))
}

func malformed(b []byte, r drop.Reason) string {
	if len(b) < wire.EthernetBytes {
		return "runt frame"
	}
	if r == drop.UnknownType {
		return fmt.Sprintf("ethertype 0x%04x", binary.BigEndian.Uint16(b[12:]))
	}
	return "malformed packet (" + r.String() + ")"
}

func hasPorts(h *wire.Headers) bool {
	return h.HasL4 && (h.Proto == wire.ProtoTCP || h.Proto == wire.ProtoUDP || h.Proto == wire.ProtoSCTP)
}

func place(a wire.Addr, port uint16, h *wire.Headers) string {
	if !hasPorts(h) {
		return a.String()
	}
	return netip.AddrPortFrom(a.Netip(), port).String()
}

func transport(b []byte, h *wire.Headers) string {
	payload := h.End - h.PayloadOff
	if !h.HasL4 {
		return fmt.Sprintf("%s, length %d", protocol(h.Proto), payload)
	}
	l4 := b[h.L4Off:h.End]
	switch h.Proto {
	case wire.ProtoTCP:
		s := fmt.Sprintf("TCP [%s], seq %d", flags(h.TCPFlags), binary.BigEndian.Uint32(l4[4:]))
		if h.TCPFlags&wire.ACK != 0 {
			s += fmt.Sprintf(", ack %d", binary.BigEndian.Uint32(l4[8:]))
		}
		return fmt.Sprintf("%s, win %d, length %d", s, binary.BigEndian.Uint16(l4[14:]), payload)
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return icmp(l4, h)
	}
	return fmt.Sprintf("%s, length %d", protocol(h.Proto), payload)
}

func protocol(p uint8) string {
	switch p {
	case wire.ProtoTCP:
		return "TCP"
	case wire.ProtoUDP:
		return "UDP"
	case wire.ProtoSCTP:
		return "SCTP"
	case wire.ProtoICMP:
		return "ICMP"
	case wire.ProtoICMPv6:
		return "ICMP6"
	}
	return fmt.Sprintf("protocol %d", p)
}

// flags are tcpdump's letters.
func flags(f uint8) string {
	var s strings.Builder
	for _, x := range []struct {
		bit    uint8
		letter byte
	}{{wire.FIN, 'F'}, {wire.SYN, 'S'}, {wire.RST, 'R'}, {wire.PSH, 'P'}, {wire.ACK, '.'}, {wire.URG, 'U'}, {wire.ECE, 'E'}, {wire.CWR, 'W'}} {
		if f&x.bit != 0 {
			s.WriteByte(x.letter)
		}
	}
	return s.String()
}

// icmpNames are of the messages that a pod network sees.
var icmpNames = map[bool]map[uint8]string{
	false: {
		wire.ICMPEchoReply: "echo reply", wire.ICMPUnreachable: "unreachable", wire.ICMPRedirect: "redirect",
		wire.ICMPEcho: "echo request", wire.ICMPTimeExceeded: "time exceeded", wire.ICMPParamProblem: "parameter problem",
	},
	true: {
		wire.ICMPv6Unreachable: "unreachable", wire.ICMPv6TooBig: "packet too big", wire.ICMPv6TimeExceeded: "time exceeded",
		wire.ICMPv6ParamProblem: "parameter problem", wire.ICMPv6Echo: "echo request", wire.ICMPv6EchoReply: "echo reply",
		wire.ICMPv6RouterSolicit: "router solicitation", wire.ICMPv6RouterAdvert: "router advertisement",
		wire.ICMPv6NeighborSolicit: "neighbour solicitation", wire.ICMPv6NeighborAdvert: "neighbour advertisement",
		wire.ICMPv6MLDv2Report: "multicast listener report",
	},
}

func icmp(l4 []byte, h *wire.Headers) string {
	name := icmpNames[h.V6][h.ICMPType]
	if name == "" {
		name = fmt.Sprintf("type %d", h.ICMPType)
	}
	s := protocol(h.Proto) + " " + name
	switch {
	case h.IsEcho():
		s += fmt.Sprintf(", id %d, seq %d", h.SrcPort, binary.BigEndian.Uint16(l4[6:]))
	case h.IsICMPError():
		s += fmt.Sprintf(", code %d", h.ICMPCode)
		if !h.V6 && h.ICMPType == wire.ICMPUnreachable && h.ICMPCode == 4 {
			s += fmt.Sprintf(", mtu %d", binary.BigEndian.Uint16(l4[6:]))
		}
		if h.V6 && h.ICMPType == wire.ICMPv6TooBig {
			s += fmt.Sprintf(", mtu %d", binary.BigEndian.Uint32(l4[4:]))
		}
		var q wire.Headers
		if wire.ParseQuoted(l4[wire.ICMPBytes:], &q) == drop.None {
			s += fmt.Sprintf(" (about %s %s > %s)", protocol(q.Proto), place(q.Src, q.SrcPort, &q), place(q.Dst, q.DstPort, &q))
		}
	}
	return fmt.Sprintf("%s, length %d", s, len(l4))
}

func fragment(h *wire.Headers) string {
	if !h.Fragment {
		return ""
	}
	more := ""
	if h.MoreFrags {
		more = "+"
	}
	return fmt.Sprintf(" (fragment %d@%d%s)", h.FragID, h.FragOffset, more)
}

func arp(b []byte) string {
	if len(b) < wire.ARPBytes {
		return "ARP, truncated"
	}
	sender, target := wire.AddrFrom4(b[14:]), wire.AddrFrom4(b[24:])
	if wire.ARPOp(b) == 1 {
		return fmt.Sprintf("ARP who has %s, tell %s", target, sender)
	}
	return fmt.Sprintf("ARP %s is at %x:%x:%x:%x:%x:%x", sender, b[8], b[9], b[10], b[11], b[12], b[13])
}
