//go:build linux

package vxlan

import "vswitch/internal/wire"

// The VXLAN header (RFC 7348 section 5), between the outer UDP header and the
// inner Ethernet header:
//
//	 0               8                              24              32
//	+-+-+-+-+-+-+-+-+------------------------------+---------------+
//	|R|R|R|R|I|R|R|R|            reserved                          |
//	+---------------+------------------------------+---------------+
//	|               VNI                            |   reserved    |
//	+----------------------------------------------+---------------+
//
// I must be set. Reserved bits are sent as zero and ignored on receipt.
const (
	// HeaderBytes is the length of the VXLAN header.
	HeaderBytes = 8
	// DefaultPort is what Linux and flannel use; IANA's number is 4789.
	DefaultPort = 8472
	// DefaultVNI is flannel's.
	DefaultVNI = 1
	// MaxVNI is the largest 24-bit identifier.
	MaxVNI = 1<<24 - 1

	flagVNI = 0x08
)

// ingressBit tells a node's ingress VNI from its VNI. The highest bit, far from the
// small numbers people give: a second cluster over the same underlay, or a second
// device of flannel's, has 2 rather than 2^23+1.
const ingressBit = 1 << 23

// IngressVNI is the ingress VNI that goes with a VNI.
func IngressVNI(vni uint32) uint32 {
	if vni == ingressBit {
		return MaxVNI
	}
	return vni ^ ingressBit
}

// putHeader writes a VXLAN header into the first HeaderBytes of b.
func putHeader(b []byte, vni uint32) {
	_ = b[HeaderBytes-1]
	b[0], b[1], b[2], b[3] = flagVNI, 0, 0, 0
	b[4], b[5], b[6], b[7] = byte(vni>>16), byte(vni>>8), byte(vni), 0
}

// parseHeader reads the VNI and gives the inner frame; ok is false for a runt or
// where the VNI is not declared valid.
func parseHeader(b []byte) (vni uint32, inner []byte, ok bool) {
	if len(b) < HeaderBytes || b[0]&flagVNI == 0 {
		return 0, nil, false
	}
	return uint32(b[4])<<16 | uint32(b[5])<<8 | uint32(b[6]), b[HeaderBytes:], true
}

// What encapsulation adds to an inner IP packet, in bytes:
//
//	outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14
//
// The outer Ethernet header does not count: MTUs are of IP packets.
const (
	OverheadV4Bytes = wire.IPv4Bytes + wire.UDPBytes + HeaderBytes + wire.EthernetBytes // 50
	OverheadV6Bytes = wire.IPv6Bytes + wire.UDPBytes + HeaderBytes + wire.EthernetBytes // 70
)

// Flannel and every VXLAN guide say 50 and 70.
const (
	_ = uint(OverheadV4Bytes - 50)
	_ = uint(50 - OverheadV4Bytes)
	_ = uint(OverheadV6Bytes - 70)
	_ = uint(70 - OverheadV6Bytes)
)
