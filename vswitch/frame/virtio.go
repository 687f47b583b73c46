package frame

import "encoding/binary"

// The virtio-net header that Linux puts before each frame of a TAP opened with
// IFF_VNET_HDR (include/uapi/linux/virtio_net.h, struct virtio_net_hdr; virtio
// 1.2 section 5.1.6). Ten bytes, in host order unless TUNSETVNETLE is set; we
// set TUNSETVNETLE, so it is little endian everywhere.
//
//	0        1         2         4          6            8
//	+--------+---------+---------+----------+------------+-------------+
//	| flags  | gsoType | hdrLen  | gsoSize  | csumStart  | csumOffset  |
//	+--------+---------+---------+----------+------------+-------------+
const VNetHeaderBytes = 10

// VNetFlags are the flag bits of a virtio-net header.
type VNetFlags uint8

// Flag bits.
const (
	// NeedsCsum: the checksum field holds the folded pseudo-header sum only;
	// the sum over [CsumStart, end) is still to be added at CsumStart+CsumOffset.
	NeedsCsum VNetFlags = 1
	// DataValid: the checksum was verified by whoever passed the frame on.
	DataValid VNetFlags = 2
)

// GSOType says what a super-frame is to be cut into.
type GSOType uint8

// Segmentation kinds.
const (
	GSONone  GSOType = 0
	GSOTCPv4 GSOType = 1
	GSOUDP   GSOType = 3 // UFO, never negotiated
	GSOTCPv6 GSOType = 4
	GSOUDPL4 GSOType = 5 // USO: one datagram a segment, Linux 6.2
	// GSOECN is or-ed into the TCP kinds when CWR is set in the first segment.
	GSOECN GSOType = 0x80
)

// Kind strips the ECN bit.
func (t GSOType) Kind() GSOType { return t &^ GSOECN }

// VNet is a decoded virtio-net header. The zero value: nothing is offloaded.
type VNet struct {
	Flags      VNetFlags
	GSOType    GSOType
	HdrLen     uint16 // bytes of all headers, Ethernet to transport; a hint, never trusted
	GSOSize    uint16 // payload bytes of each segment
	CsumStart  uint16 // from the first byte of the Ethernet header
	CsumOffset uint16 // from CsumStart
}

// IsGSO reports whether the frame stands for several.
func (v *VNet) IsGSO() bool { return v.GSOType.Kind() != GSONone }

// Decode reads the header from the first VNetHeaderBytes of b; b must be that long.
func (v *VNet) Decode(b []byte) {
	_ = b[VNetHeaderBytes-1]
	v.Flags = VNetFlags(b[0])
	v.GSOType = GSOType(b[1])
	v.HdrLen = binary.LittleEndian.Uint16(b[2:])
	v.GSOSize = binary.LittleEndian.Uint16(b[4:])
	v.CsumStart = binary.LittleEndian.Uint16(b[6:])
	v.CsumOffset = binary.LittleEndian.Uint16(b[8:])
}

// Encode writes the header to the first VNetHeaderBytes of b; b must be that long.
func (v *VNet) Encode(b []byte) {
	_ = b[VNetHeaderBytes-1]
	b[0] = uint8(v.Flags)
	b[1] = uint8(v.GSOType)
	binary.LittleEndian.PutUint16(b[2:], v.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], v.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], v.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], v.CsumOffset)
}
