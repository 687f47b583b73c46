package offload_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// partial is p as one frame with a partial checksum.
func partial(p *offloadtest.Packet) *frame.Frame {
	f := p.Super(0)
	f.VNet.GSOType = frame.GSONone
	f.VNet.GSOSize = 0
	return f
}

func TestCompleteEqualsTheSlowTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		f := partial(p)
		if r := offload.Complete(f); r != drop.None {
			t.Fatalf("refused: %v", r)
		}
		if !bytes.Equal(f.Bytes(), p.Bytes(false)) {
			t.Fatal("completed frame differs from one built with a full checksum")
		}
		if f.VNet.Flags&frame.NeedsCsum != 0 {
			t.Fatal("NeedsCsum is still set")
		}
		if r := offload.Complete(f); r != drop.None || !bytes.Equal(f.Bytes(), p.Bytes(false)) {
			t.Fatal("completing twice changed the frame")
		}
	})
}

func TestCompleteWritesNoZeroUDPChecksum(t *testing.T) {
	p := offloadtest.TCP4([]byte{0, 0})
	p.UDP = true
	// A payload equal to the checksum that it has without: the sum becomes 0xffff,
	// its complement zero.
	copy(p.Payload, p.Bytes(false)[40:42])
	f := partial(p)
	if r := offload.Complete(f); r != drop.None {
		t.Fatal(r)
	}
	if got := binary.BigEndian.Uint16(f.Bytes()[40:]); got != 0xffff {
		t.Errorf("checksum field %#04x, want 0xffff", got)
	}
}

// The metadata says where two bytes are written: nowhere that was judged before.
func TestCompleteWritesOnlyWhereItMay(t *testing.T) {
	frames := map[string]*offloadtest.Packet{"TCP over IPv4": offloadtest.TCP4(offloadtest.Random(200, 1))}
	u := offloadtest.TCP4(offloadtest.Random(200, 1))
	u.UDP, u.V6, u.Src, u.Dst = true, true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	frames["UDP over IPv6"] = u
	for name, p := range frames {
		t.Run(name, func(t *testing.T) {
			own := partial(p)
			for start := range own.Len() + 3 {
				for _, offset := range []int{0, 2, 6, 16, 65535 - start} {
					f := own.Clone()
					f.VNet.CsumStart, f.VNet.CsumOffset = uint16(start), uint16(offset)
					before := bytes.Clone(f.Bytes())
					r := offload.Complete(f)
					isOwn := uint16(start) == own.VNet.CsumStart && uint16(offset) == own.VNet.CsumOffset
					allowed := isOwn || start >= p.HeaderBytes() && start+offset+2 <= len(before)
					if (r == drop.None) != allowed {
						t.Fatalf("start %d offset %d: %v, allowed %v", start, offset, r, allowed)
					}
					if r != drop.None && !bytes.Equal(before, f.Bytes()) {
						t.Fatalf("start %d offset %d: refused and yet written", start, offset)
					}
					if !isOwn && !bytes.Equal(before[:p.HeaderBytes()], f.Bytes()[:p.HeaderBytes()]) {
						t.Fatalf("start %d offset %d: a header was written", start, offset)
					}
				}
			}
		})
	}
}

func TestCompleteRefuses(t *testing.T) {
	fragment := partial(offloadtest.TCP4(offloadtest.Random(100, 1)))
	fragment.Bytes()[20] |= 0x20 // more fragments
	ip := fragment.Bytes()[14:34]
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^uint16(offloadtest.Sum(ip)))
	arp := frame.New()
	arp.Set(append([]byte{12: 8, 13: 6}, make([]byte, 28)...))
	arp.VNet = frame.VNet{Flags: frame.NeedsCsum, CsumStart: 20, CsumOffset: 2}
	runt := frame.New()
	runt.Set(make([]byte, 10))
	runt.VNet = arp.VNet
	tests := []struct {
		name string
		f    *frame.Frame
		want drop.Reason
	}{
		{"a fragment, which has no checksum of its own", fragment, drop.BadOffload},
		{"ARP, which has none at all", arp, drop.BadOffload},
		{"a runt", runt, drop.Truncated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := offload.Complete(tt.f); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// verify parses and verifies.
func verify(t *testing.T, f *frame.Frame) drop.Reason {
	t.Helper()
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		t.Fatalf("does not parse: %v", r)
	}
	return offload.Verify(f, &h)
}

func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	ps := map[string]*offloadtest.Packet{"TCP4": offloadtest.TCP4(offloadtest.Random(33, 1))}
	u := offloadtest.TCP4(offloadtest.Random(33, 1))
	u.UDP, u.V6, u.Src, u.Dst = true, true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	ps["UDP6"] = u
	for name, p := range ps {
		t.Run(name, func(t *testing.T) {
			f := frame.New()
			f.Set(p.Bytes(false))
			if r := verify(t, f); r != drop.None {
				t.Fatalf("good packet: %v", r)
			}
			for bit := p.HeaderBytes() * 8; bit < f.Len()*8; bit++ {
				f.Bytes()[bit/8] ^= 1 << (bit % 8)
				if r := verify(t, f); r != drop.BadChecksum {
					t.Fatalf("bit %d flipped: %v", bit, r)
				}
				f.Bytes()[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
}

func TestVerifyWhereThereIsNothingToVerify(t *testing.T) {
	zero := func(v6 bool) *frame.Frame {
		p := offloadtest.TCP4(offloadtest.Random(10, 1))
		p.UDP = true
		if v6 {
			p.V6, p.Src, p.Dst = true, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		}
		f := frame.New()
		f.Set(p.Bytes(false))
		copy(f.Bytes()[p.L3Bytes()+6:], []byte{0, 0})
		return f
	}
	lying := frame.New()
	lying.Set(offloadtest.TCP4(offloadtest.Random(10, 1)).Bytes(false))
	lying.Bytes()[60] ^= 1
	lying.VNet.Flags = frame.DataValid
	tests := []struct {
		name string
		f    *frame.Frame
		want drop.Reason
	}{
		{"UDP over IPv4 without checksum passes", zero(false), drop.None},
		{"UDP over IPv6 without checksum does not", zero(true), drop.BadChecksum},
		{"a partial checksum passes", partial(offloadtest.TCP4(offloadtest.Random(10, 1))), drop.None},
		{"a bad checksum that claims to be verified does not", lying, drop.BadChecksum},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := verify(t, tt.f); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// ipv4 wraps a payload of some protocol.
func ipv4(proto uint8, payload []byte) *frame.Frame {
	ip := []byte{0x45, 0, 0, uint8(20 + len(payload)), 0, 0, 0, 0, 64, proto, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(offloadtest.Sum(ip)))
	f := frame.New()
	f.Set(append(append([]byte{12: 8, 13: 0}, ip...), payload...))
	return f
}

func TestVerifyOtherProtocols(t *testing.T) {
	icmp := []byte{8, 0, 0, 0, 0, 1, 0, 1, 'h', 'i'}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(offloadtest.Sum(icmp)))
	sctp := append(make([]byte, 12), "chunk"...)
	binary.LittleEndian.PutUint32(sctp[8:], crc32.Checksum(sctp, crc32.MakeTable(crc32.Castagnoli)))
	for name, f := range map[string]*frame.Frame{"ICMP": ipv4(wire.ProtoICMP, icmp), "SCTP": ipv4(wire.ProtoSCTP, sctp)} {
		t.Run(name, func(t *testing.T) {
			if r := verify(t, f); r != drop.None {
				t.Errorf("good packet: %v", r)
			}
			f.Bytes()[f.Len()-1] ^= 1
			if r := verify(t, f); r != drop.BadChecksum {
				t.Errorf("bad packet: %v", r)
			}
		})
	}
}
