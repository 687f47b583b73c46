//go:build linux

package vxlan

import (
	"encoding/binary"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// A Linux vxlan device hands its packets on with inner checksums and inner
// super-frames unfinished, for the network card to finish. Where the path to us is
// made of virtual devices only (veth: a flannel node beside us on one host, a
// cluster in containers), no card ever does, and our socket gets
//
//   - packets whose inner checksum is the pseudo-header's sum and no more;
//   - inner TCP super-frames in one datagram, far longer than any MTU, with no word
//     of their segment size;
//   - inner UDP super-frames in one datagram, for which UDP_GRO reports the inner
//     segment size as if it were the outer one.
//
// What is missing is recovered here, or taken from the pods' MTU. Seen with
// Linux 6.18; over a wire it does not happen, and vswitch nodes finish their
// packets, so it is looked for only with members that are such devices (AnyPort).

// isUncut reports whether what looks like a train is one VXLAN packet: its inner IP
// packet is as long as the whole, which the first packet of a train can't be.
func isUncut(data []byte) bool {
	_, inner, ok := parseHeader(data)
	if !ok || len(inner) < wire.EthernetBytes+wire.IPv6Bytes {
		return false
	}
	ip := inner[wire.EthernetBytes:]
	switch binary.BigEndian.Uint16(inner[12:]) {
	case wire.TypeIPv4:
		return int(binary.BigEndian.Uint16(ip[2:])) == len(ip)
	case wire.TypeIPv6:
		return wire.IPv6Bytes+int(binary.BigEndian.Uint16(ip[4:])) == len(ip)
	}
	return false
}

// metadataOf recovers the offload metadata of a packet whose headers are h.
// segmentBytes is the size its message reported, podMTU the longest packet that its
// destination takes.
func metadataOf(inner []byte, h *wire.Headers, segmentBytes, podMTU int) frame.VNet {
	v, ok := offload.Partial(inner, h)
	maxBytes := h.L3Off + podMTU
	if !ok || maxBytes <= h.PayloadOff {
		return v
	}
	switch {
	case h.Proto == wire.ProtoUDP && segmentBytes < h.End-h.PayloadOff:
		v.GSOType, v.GSOSize = frame.GSOUDPL4, uint16(segmentBytes)
	case h.Proto == wire.ProtoTCP && h.End > maxBytes:
		v.GSOType, v.GSOSize = frame.GSOTCPv4, uint16(maxBytes-h.PayloadOff)
		if h.V6 {
			v.GSOType = frame.GSOTCPv6
		}
		if h.TCPFlags&wire.CWR != 0 {
			v.GSOType |= frame.GSOECN
		}
	default:
		return v
	}
	v.HdrLen = uint16(h.PayloadOff)
	return v
}
