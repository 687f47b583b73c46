package offload

import (
	"bytes"
	"encoding/binary"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// The coalescer undoes segmentation. Packets of a receive batch come one after
// another; a packet that continues a frame already in the batch is appended to
// that frame, which becomes a super-frame: one write to a TAP and one pass
// through the pod's stack instead of forty-five.
//
// It keeps, per flow, at most one open frame: the flow's latest. A packet that
// belongs to the flow but can't be appended closes it, so no packet overtakes
// an earlier one of its flow. The rules are those of Linux's tcp_gro_receive,
// inet_gro_receive and udp_gro_receive: what is merged can be cut again into the
// packets that came, which the property tests hold it to.
//
//   - Ethernet and IP headers equal, ECN and TTL included, but for length,
//     identification and checksum. IPv4 identification counts up unless DF makes
//     it meaningless (RFC 6864 section 4.1).
//   - TCP: sequence contiguous; acknowledgement, window and all options equal;
//     ACK set; no SYN, RST or URG. PSH, FIN or a short segment ends the frame.
//     CWR only on the first, and then only if the receiver takes frame.GSOECN.
//     ECE equal on all.
//   - UDP, only where the receiver takes USO: payloads equal but for a shorter
//     last one, checksum present.
//   - Every checksum is verified before it is replaced by a partial one. A packet
//     with a bad one stays as it is, on its own, for its receiver to judge.
//     Packets that meet no partner are not summed at all. Partial ones merge only
//     with partial ones.

const (
	// openFlows is how many flows may be merged at a time. Senders emit trains, so
	// few are open at once even with many connections; 16 cost one linear look.
	openFlows = 16
	// maxIPBytes is the longest IP packet frame.MaxBytes allows, and IPv4 can name.
	maxIPBytes = 65535
	// maxUSOSegments is UDP_MAX_SEGMENTS of kernels before 6.9, which refuse more.
	maxUSOSegments = 64
)

// Coalescer merges the packets of one receive batch. The zero value merges TCP
// without CWR. It is used by one goroutine at a time.
type Coalescer struct {
	USO bool // receivers take frame.GSOUDPL4
	ECN bool // receivers take frame.GSOECN

	open   [openFlows]openFrame
	n      int // open[:n] are in use
	victim int // next to be closed when all are
}

// openFrame is a frame in the batch that may still grow.
type openFrame struct {
	f        *frame.Frame
	h        wire.Headers // of the first packet
	end      int          // bytes of the frame so far
	segments int
	size     int    // payload of the first packet
	nextSeq  uint32 // TCP
}

// Merge appends the packet pkt, with headers h and metadata v, which came from
// tunnel member peer, and by the ingress VNI or not, to an open frame of its flow and reports whether it did.
// Where it did not, the caller puts the packet into the batch and calls Open.
func (c *Coalescer) Merge(pkt []byte, h *wire.Headers, v *frame.VNet, peer uint32, ingress bool) bool {
	if c.n == 0 {
		return false
	}
	if h.Fragment {
		c.Flush() // its flow may be any
		return false
	}
	if !c.merges(h) {
		return false
	}
	i := c.find(h, peer, ingress)
	if i < 0 {
		return false
	}
	o := &c.open[i]
	if !o.takes(pkt, h, v) {
		c.close(i)
		return false
	}
	if last := o.append(pkt, h); last {
		c.close(i)
	}
	return true
}

// Open tells that f, with headers h, now stands in the batch: packets that
// continue it may be appended until Flush. f must have room, and h be of f's bytes.
func (c *Coalescer) Open(f *frame.Frame, h *wire.Headers) {
	if !c.merges(h) || !c.begins(f, h) {
		return
	}
	if c.n == openFlows {
		c.close(c.victim)
		c.victim = (c.victim + 1) % openFlows
	}
	o := &c.open[c.n]
	c.n++
	o.f, o.h = f, *h
	o.end = h.End // Ethernet padding, if any, is overwritten
	o.segments = 1
	o.size = h.End - h.PayloadOff
	if h.Proto == wire.ProtoTCP {
		o.nextSeq = binary.BigEndian.Uint32(f.Bytes()[h.L4Off+4:]) + uint32(o.size)
	}
}

// Flush completes every open frame: call it before the batch is read.
func (c *Coalescer) Flush() {
	for c.n > 0 {
		c.close(c.n - 1)
	}
	c.victim = 0
}

// merges reports whether packets of this kind are merged at all.
func (c *Coalescer) merges(h *wire.Headers) bool {
	return h.HasL4 && !h.Fragment && (h.Proto == wire.ProtoTCP || c.USO && h.Proto == wire.ProtoUDP)
}

// begins reports whether f may be the first packet of a super-frame.
func (c *Coalescer) begins(f *frame.Frame, h *wire.Headers) bool {
	if h.End == h.PayloadOff || h.PayloadOff > MaxHeaderBytes {
		return false
	}
	if v := &f.VNet; v.IsGSO() || *v != (frame.VNet{}) && !hasOwnPartial(v, h) {
		return false
	}
	if h.Proto == wire.ProtoUDP {
		return wholeUDP(f.Bytes(), h)
	}
	const ends = wire.SYN | wire.RST | wire.URG | wire.FIN | wire.PSH
	if h.TCPFlags&(ends|wire.ACK) != wire.ACK || h.End-h.PayloadOff < minTCPSegment {
		return false
	}
	return c.ECN || h.TCPFlags&wire.CWR == 0
}

// wholeUDP reports whether the datagram fills its packet and has a checksum.
func wholeUDP(b []byte, h *wire.Headers) bool {
	l4 := b[h.L4Off:h.End]
	return int(binary.BigEndian.Uint16(l4[4:])) == len(l4) && binary.BigEndian.Uint16(l4[udpChecksum:]) != 0
}

func (c *Coalescer) find(h *wire.Headers, peer uint32, ingress bool) int {
	for i := range c.open[:c.n] {
		o := &c.open[i]
		if o.h.SrcPort == h.SrcPort && o.h.DstPort == h.DstPort && o.h.Proto == h.Proto &&
			o.h.V6 == h.V6 && o.f.Peer == peer && o.f.Ingress == ingress && o.h.Src == h.Src && o.h.Dst == h.Dst {
			return i
		}
	}
	return -1
}

// close completes open frame i and frees its place.
func (c *Coalescer) close(i int) {
	o := &c.open[i]
	if o.segments > 1 {
		o.seal()
	}
	c.n--
	c.open[i] = c.open[c.n]
	c.open[c.n].f = nil
}

// takes reports whether pkt continues o.
func (o *openFrame) takes(pkt []byte, h *wire.Headers, v *frame.VNet) bool {
	n := h.End - h.PayloadOff
	partial := hasOwnPartial(v, h)
	if v.IsGSO() || partial != (o.f.VNet.Flags&frame.NeedsCsum != 0) || n == 0 || n > o.size || o.end-o.h.L3Off+n > maxIPBytes ||
		h.L3Off != o.h.L3Off || h.L4Off != o.h.L4Off || h.PayloadOff != o.h.PayloadOff {
		return false
	}
	b := o.f.Bytes()
	if !bytes.Equal(b[:h.L3Off], pkt[:h.L3Off]) ||
		!o.sameIP(b[h.L3Off:h.L4Off], pkt[h.L3Off:h.L4Off], h) {
		return false
	}
	head, seg := b[h.L4Off:h.PayloadOff], pkt[h.L4Off:h.PayloadOff]
	if h.Proto == wire.ProtoTCP {
		if !o.sameTCP(head, seg, h) {
			return false
		}
	} else if o.segments == maxUSOSegments || !wholeUDP(pkt, h) {
		return false
	}
	if partial {
		return true
	}
	// Only now is there reason to read the payload.
	if o.segments == 1 && VerifyTransport(b, &o.h) != drop.None {
		return false
	}
	return VerifyTransport(pkt, h) == drop.None
}

// sameIP compares IP headers from their first byte to the transport header.
func (o *openFrame) sameIP(a, b []byte, h *wire.Headers) bool {
	if h.V6 {
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:], b[6:]) // all but the length
	}
	return a[0] == b[0] && a[1] == b[1] && // all but length, identification and checksum
		bytes.Equal(a[6:ipv4Checksum], b[6:ipv4Checksum]) && bytes.Equal(a[ipv4Checksum+2:], b[ipv4Checksum+2:]) &&
		(h.DontFragment || uint16(h.FragID) == uint16(o.h.FragID)+uint16(o.segments))
}

// sameTCP compares TCP headers, options included.
func (o *openFrame) sameTCP(a, b []byte, h *wire.Headers) bool {
	// PSH and FIN may come with the last packet. begins saw to the rest of a's.
	const mayDiffer = wire.PSH | wire.FIN
	if (h.TCPFlags^o.h.TCPFlags&^wire.CWR)&^mayDiffer != 0 {
		return false
	}
	return binary.BigEndian.Uint32(b[4:]) == o.nextSeq &&
		bytes.Equal(a[8:13], b[8:13]) && // acknowledgement, header length
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[18:], b[18:]) // urgent pointer, options
}

// append adds the payload of pkt and reports whether the frame must end here.
func (o *openFrame) append(pkt []byte, h *wire.Headers) (last bool) {
	payload := pkt[h.PayloadOff:h.End]
	o.f.SetLen(o.end + len(payload))
	b := o.f.Bytes()
	copy(b[o.end:], payload)
	o.end += len(payload)
	o.segments++
	o.nextSeq += uint32(len(payload))
	if h.Proto == wire.ProtoTCP {
		tail := h.TCPFlags & (wire.PSH | wire.FIN)
		b[h.L4Off+13] |= tail
		return tail != 0 || len(payload) < o.size
	}
	return len(payload) < o.size
}

// seal turns what has been gathered into a super-frame: lengths and IPv4
// checksum of the whole, a partial transport checksum, and the metadata that says so.
func (o *openFrame) seal() {
	h, b := &o.h, o.f.Bytes()
	putIPLength(b, h, o.end-h.L3Off)
	if !h.V6 {
		sealIPv4(b, h)
	}
	v := frame.VNet{
		Flags:     frame.NeedsCsum,
		HdrLen:    uint16(h.PayloadOff),
		GSOSize:   uint16(o.size),
		CsumStart: uint16(h.L4Off),
	}
	l4 := b[h.L4Off:]
	switch {
	case h.Proto == wire.ProtoUDP:
		v.GSOType, v.CsumOffset = frame.GSOUDPL4, udpChecksum
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	case h.V6:
		v.GSOType, v.CsumOffset = frame.GSOTCPv6, tcpChecksum
	default:
		v.GSOType, v.CsumOffset = frame.GSOTCPv4, tcpChecksum
	}
	if h.Proto == wire.ProtoTCP && h.TCPFlags&wire.CWR != 0 {
		v.GSOType |= frame.GSOECN
	}
	binary.BigEndian.PutUint16(l4[v.CsumOffset:], wire.Fold(wire.PseudoSum(h, len(l4))))
	o.f.VNet = v
}
