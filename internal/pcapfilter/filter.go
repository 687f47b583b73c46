// Package pcapfilter decides which frames a capture is of, by the part of
// tcpdump's filter language (pcap-filter(7)) that people type:
//
//	expression  term {and|or term}          from left to right, both bind alike
//	term        not term | (expression) | primitive
//	primitive   ip | ip6 | arp | tcp | udp | sctp | icmp | icmp6
//	            [ip|ip6|arp] [dir] [host] ADDRESS
//	            [ip|ip6|arp] [dir] net PREFIX
//	            [tcp|udp|sctp] [dir] port NUMBER
//	            [tcp|udp|sctp] [dir] portrange FIRST-LAST
//	            [ip|ip6] proto NUMBER|NAME
//	            ether [src|dst|host] MAC
//	            less BYTES | greater BYTES
//	dir         src | dst | src or dst | src and dst
//
// &&, || and ! stand for the words. After and and or, an address or number alone
// takes over what stood before the last one: "port 80 or 443". Unlike tcpdump's,
// transport protocols are found behind IPv6 extension headers. Names of hosts and ports are
// not looked up, and there is no arithmetic on bytes.
//
// Compiling libpcap's language to BPF in Go was looked at: the one library that
// does has compiled wrong programs for "not net" and for "and" in recent memory,
// and a program would have to find headers again that have been parsed here.
//
// A Filter is immutable and judges a frame without allocation; workers share it.
package pcapfilter

import (
	"bytes"
	"encoding/binary"

	"vswitch/internal/wire"
)

// Packet is what a filter looks at.
type Packet struct {
	Frame   []byte        // from the Ethernet header on
	Headers *wire.Headers // of Frame
	Sound   bool          // wire.Parse found nothing wrong, so all of Headers is set
}

// Filter decides about frames. The zero value, and nil, match all.
type Filter struct{ root *node }

// Match reports whether the frame is one of those asked for.
func (f *Filter) Match(p *Packet) bool { return f == nil || f.root == nil || f.root.match(p) }

type operation uint8

const (
	opAnd operation = iota
	opOr
	opNot
	opEtherType // value
	opProtocol  // of version, value; any version if that is 0
	opAddress   // addr/bits
	opPort      // low to high, of protocol value if not 0
	opMAC
	opLength // low to high
)

// direction says which of two fields must match.
type direction uint8

const (
	either direction = iota
	source
	destination
	both
)

func (d direction) of(src, dst bool) bool {
	switch d {
	case source:
		return src
	case destination:
		return dst
	case both:
		return src && dst
	}
	return src || dst
}

// node is one operation; which fields count depends on it.
type node struct {
	op          operation
	left, right *node // right alone: opNot

	dir       direction
	etherType uint16 // opEtherType; opAddress: restricted to it, if not 0
	version   uint8  // opProtocol: 4, 6, or 0 for both
	protocol  uint8
	addr      wire.Addr
	bits      int // of addr, in its 16-byte form
	mac       [6]byte
	low, high int
}

func (n *node) match(p *Packet) bool {
	h := p.Headers
	switch n.op {
	case opAnd:
		return n.left.match(p) && n.right.match(p)
	case opOr:
		return n.left.match(p) || n.right.match(p)
	case opNot:
		return !n.right.match(p)
	case opEtherType:
		return h.EtherType == n.etherType
	case opProtocol:
		return p.isIP() && h.Proto == n.protocol && (n.version == 0 || (n.version == 6) == h.V6)
	case opAddress:
		return n.matchAddress(p)
	case opPort:
		return n.matchPort(p)
	case opMAC:
		return len(p.Frame) >= wire.EthernetBytes &&
			n.dir.of(bytes.Equal(p.Frame[6:12], n.mac[:]), bytes.Equal(p.Frame[:6], n.mac[:]))
	case opLength:
		return len(p.Frame) >= n.low && len(p.Frame) <= n.high
	}
	return false
}

func (p *Packet) isIP() bool { return p.Sound && p.Headers.EtherType != wire.TypeARP }

// matchAddress looks at the addresses of IP, or of ARP's sender and target.
func (n *node) matchAddress(p *Packet) bool {
	h := p.Headers
	if n.etherType != 0 && h.EtherType != n.etherType {
		return false
	}
	if p.isIP() {
		return n.dir.of(n.covers(&h.Src), n.covers(&h.Dst))
	}
	if h.EtherType != wire.TypeARP || len(p.Frame) < wire.EthernetBytes+wire.ARPBytes {
		return false
	}
	arp := p.Frame[wire.EthernetBytes:]
	sender, target := wire.AddrFrom4(arp[14:]), wire.AddrFrom4(arp[24:])
	return n.dir.of(n.covers(&sender), n.covers(&target))
}

// covers reports whether a lies in n.addr/n.bits.
func (n *node) covers(a *wire.Addr) bool {
	for i := 0; i < 2; i++ {
		bits := min(max(n.bits-64*i, 0), 64)
		mask := ^uint64(0) << (64 - bits)
		if (binary.BigEndian.Uint64(a[8*i:])^binary.BigEndian.Uint64(n.addr[8*i:]))&mask != 0 {
			return false
		}
	}
	return true
}

func (n *node) matchPort(p *Packet) bool {
	h := p.Headers
	if !p.Sound || !h.HasL4 {
		return false
	}
	switch h.Proto {
	case wire.ProtoTCP, wire.ProtoUDP, wire.ProtoSCTP:
	default:
		return false // an echo's identifier is no port
	}
	if n.protocol != 0 && n.protocol != h.Proto {
		return false
	}
	in := func(port uint16) bool { return int(port) >= n.low && int(port) <= n.high }
	return n.dir.of(in(h.SrcPort), in(h.DstPort))
}
