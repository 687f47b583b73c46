package control

import (
	"encoding/binary"
	"net/netip"
)

// AddrAt is address number n of a prefix, 0 being the network address. n must be
// less than Size.
func AddrAt(p netip.Prefix, n uint64) netip.Addr {
	a := p.Masked().Addr()
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	low := binary.BigEndian.Uint64(b[8:])
	if low+n < low {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	}
	binary.BigEndian.PutUint64(b[8:], low+n)
	return netip.AddrFrom16(b)
}

// HostNumber is the n for which AddrAt(p, n) is a; not ok if a is outside p, or
// more than 2^32 into it.
func HostNumber(p netip.Prefix, a netip.Addr) (n uint64, ok bool) {
	if !p.Contains(a) {
		return 0, false
	}
	base, at := p.Masked().Addr().As16(), a.As16()
	n = binary.BigEndian.Uint64(at[8:]) - binary.BigEndian.Uint64(base[8:])
	return n, n < 1<<32 && AddrAt(p, n) == a
}

// Size is how many addresses a prefix has, at most 2^32: no more are ever used.
func Size(p netip.Prefix) uint64 {
	return 1 << min(p.Addr().BitLen()-p.Bits(), 32)
}

// RouterAddr is the address a node itself has in a pod prefix: the first after the network address. It is never leased.
func RouterAddr(p netip.Prefix) netip.Addr { return AddrAt(p, 1) }

// subnetAt is prefix number n of length bits inside p.
func subnetAt(p netip.Prefix, bits int, n uint64) netip.Prefix {
	a := p.Masked().Addr()
	shift := a.BitLen() - bits
	if a.Is4() {
		return netip.PrefixFrom(AddrAt(p, n<<shift), bits)
	}
	b := a.As16()
	for i := 0; i < 64 && n>>i != 0; i++ {
		if n>>i&1 != 0 {
			bit := shift + i
			b[15-bit/8] |= 1 << (bit % 8)
		}
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), bits)
}
