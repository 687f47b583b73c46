// Package wire reads and writes the headers of Ethernet, ARP, IPv4, IPv6, ICMP,
// TCP, UDP and SCTP, and does the checksum arithmetic that goes with them.
//
// It is pure: bytes in, values out; no allocation, no I/O, no policy. Every
// length is checked before it is used, and what does not fit is a drop.Reason,
// never a panic. Multi-byte fields are in host order once read. Everything that
// touches frames may call it.
package wire

import (
	"encoding/binary"
	"net/netip"
)

// EtherTypes (IEEE 802 numbers).
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
)

// IP protocol numbers (IANA).
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNoNext   = 59
	ProtoDstOpts  = 60
	ProtoSCTP     = 132
)

// Header lengths in bytes.
const (
	EthernetBytes = 14
	ARPBytes      = 28
	IPv4Bytes     = 20 // without options (RFC 791 section 3.1)
	IPv6Bytes     = 40 // RFC 8200 section 3
	TCPBytes      = 20 // without options (RFC 9293 section 3.1)
	UDPBytes      = 8  // RFC 768
	ICMPBytes     = 8  // RFC 792, RFC 4443: type, code, checksum and four bytes
	SCTPBytes     = 12 // RFC 9260 section 3.1
)

// TCP flags (RFC 9293 section 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Addr is an IP address of either family in 16 bytes, IPv4 as v4-mapped
// (RFC 4291 section 2.5.5.2): comparable and free of pointers, unlike netip.Addr.
type Addr [16]byte

// AddrFrom converts from netip; the zone is lost.
func AddrFrom(a netip.Addr) Addr { return a.As16() }

// AddrFrom4 makes an Addr of four bytes; b must hold them.
func AddrFrom4(b []byte) Addr {
	_ = b[3]
	return Addr{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

// Is4 reports whether a holds an IPv4 address.
func (a *Addr) Is4() bool {
	return binary.BigEndian.Uint64(a[:8]) == 0 && binary.BigEndian.Uint32(a[8:12]) == 0xffff
}

// V4 is the IPv4 address as a number, meaningful when Is4.
func (a *Addr) V4() uint32 { return binary.BigEndian.Uint32(a[12:]) }

// Netip converts to netip, IPv4 unmapped.
func (a *Addr) Netip() netip.Addr { return netip.AddrFrom16(*a).Unmap() }

func (a Addr) String() string { return a.Netip().String() }
