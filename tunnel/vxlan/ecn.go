//go:build linux

package vxlan

import (
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
)

// Explicit congestion notification over tunnels, RFC 6040: the inner mark is
// copied outside on entry (section 4.1, normal mode), and on exit the two are
// combined by the table of section 4.2. DSCP does not cross: the outer header is
// the underlay's business.
const (
	notECT  = 0
	ect1    = 1
	ect0    = 2
	ce      = 3
	ecnMask = 3
)

// innerTOS is the TOS or traffic class of the IP packet in an Ethernet frame;
// 0 for anything else or a runt.
func innerTOS(b []byte) uint8 {
	if len(b) < wire.EthernetBytes+2 {
		return 0
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case wire.TypeIPv4:
		return b[wire.EthernetBytes+1]
	case wire.TypeIPv6:
		return b[wire.EthernetBytes]<<4 | b[wire.EthernetBytes+1]>>4
	}
	return 0
}

// decapsulateECN combines the outer mark with that of the inner frame, in place.
// Congestion signalled to a packet that can't carry the signal loses the packet,
// which is the signal then (drop.Congested).
func decapsulateECN(outerTOS uint8, inner []byte) drop.Reason {
	outer := outerTOS & ecnMask
	if outer != ce && outer != ect1 {
		return drop.None // the inner mark stands
	}
	if len(inner) < wire.EthernetBytes+wire.IPv4Bytes {
		return drop.None // a runt: judged elsewhere
	}
	in := innerTOS(inner) & ecnMask
	switch {
	case outer == ce && in == notECT:
		if isIP(inner) {
			return drop.Congested
		}
	case outer == ce && in != ce:
		setInnerECN(inner, ce)
	case outer == ect1 && in == ect0:
		setInnerECN(inner, ect1)
	}
	return drop.None
}

func isIP(b []byte) bool {
	t := binary.BigEndian.Uint16(b[12:])
	return t == wire.TypeIPv4 || t == wire.TypeIPv6
}

// setInnerECN writes the mark of an IP packet behind an Ethernet header, and
// updates IPv4's header checksum.
func setInnerECN(b []byte, mark uint8) {
	ip := b[wire.EthernetBytes:]
	if binary.BigEndian.Uint16(b[12:]) == wire.TypeIPv6 {
		ip[1] = ip[1]&^(ecnMask<<4) | mark<<4
		return
	}
	old := [2]byte{ip[0], ip[1]}
	ip[1] = ip[1]&^ecnMask | mark
	sum := binary.BigEndian.Uint16(ip[10:])
	binary.BigEndian.PutUint16(ip[10:], wire.Update(sum, old[:], ip[:2]))
}
