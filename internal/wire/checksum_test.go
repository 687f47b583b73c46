package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// slowSum is RFC 1071 word by word: the folded, uncomplemented sum.
func slowSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		if sum > 0xffff {
			sum = sum&0xffff + 1
		}
	}
	return uint16(sum)
}

// same compares sums: zero and all ones are the same number in one's complement.
func same(a, b uint16) bool { return a == b || a == 0 && b == 0xffff || a == 0xffff && b == 0 }

// eachWidth runs f with what the processor has and without.
func eachWidth(t *testing.T, f func(t *testing.T)) {
	had := useVectors
	defer func() { useVectors = had }()
	for _, useVectors = range []bool{false, had} {
		t.Run(fmt.Sprintf("vectors %v", useVectors), f)
		if !had {
			break
		}
	}
}

func TestSumIsTheSlowSum(t *testing.T) {
	eachWidth(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			// Somewhere in memory, with room behind it that must not count.
			space := rapid.SliceOfN(rapid.Byte(), 0, 700).Draw(t, "b")
			b := space[min(len(space), rapid.IntRange(0, 40).Draw(t, "from")):]
			b = b[:max(0, len(b)-rapid.IntRange(0, 40).Draw(t, "less"))]
			if rapid.Bool().Draw(t, "ones") { // carries all the way
				b = bytes.Repeat([]byte{0xff}, len(b)*rapid.SampledFrom([]int{1, 90}).Draw(t, "times"))
			}
			if got, want := Fold(Sum(b, 0)), slowSum(b); got != want {
				t.Fatalf("%#04x, want %#04x", got, want)
			}
			// In parts of even length, and from a start as large as can be.
			cut := rapid.IntRange(0, len(b)/2).Draw(t, "cut") * 2
			if got, want := Fold(Sum(b[cut:], Sum(b[:cut], 0))), slowSum(b); got != want {
				t.Fatalf("in two parts %#04x, want %#04x", got, want)
			}
			start := rapid.Uint64().Draw(t, "start")
			var eight [8]byte
			binary.BigEndian.PutUint64(eight[:], start)
			if got, want := Fold(Sum(b, start)), slowSum(append(eight[:], b...)); !same(got, want) {
				t.Fatalf("from %#x: %#04x, want %#04x", start, got, want)
			}
		})
	})
}

// Every bit of a packet counts, wherever it lies in the widest registers.
func TestSumSeesEveryBit(t *testing.T) {
	eachWidth(t, func(t *testing.T) {
		b := make([]byte, 2*blockBytes+31)
		for bit := range 8 * len(b) {
			b[bit/8] = 1 << (bit % 8)
			if got, want := Fold(Sum(b, 0)), slowSum(b); got != want {
				t.Fatalf("bit %d: %#04x, want %#04x", bit, got, want)
			}
			b[bit/8] = 0
		}
	})
}

func TestFoldOfExtremes(t *testing.T) {
	for sum, want := range map[uint64]uint16{
		0: 0, 1: 1, 0xffff: 0xffff, 0x10000: 1, 0x1fffe: 0xffff, 0xffffffff: 0xffff,
		0xffffffffffffffff: 0xffff, 0xffff0000ffff0000: 0xffff, 0x8000000000000000: 0x8000,
		0xfffffffffffffffe: 0xfffe, 0x00010000ffffffff: 1,
	} {
		if got := Fold(sum); got != want {
			t.Errorf("Fold(%#x) = %#x, want %#x", sum, got, want)
		}
	}
}

// TestKnownChecksum is the IPv4 header of RFC 1071's literature: the example that
// most texts compute by hand.
func TestKnownChecksum(t *testing.T) {
	header := unhex(t, "4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7")
	if got := ^Fold(Sum(header, 0)); got != 0xb861 {
		t.Errorf("%#04x, want 0xb861", got)
	}
}

func TestPseudoSum(t *testing.T) {
	for _, tt := range []struct {
		name   string
		h      Headers
		pseudo string // written out as RFC 9293 section 3.1 and RFC 8200 section 8.1 draw it
	}{
		{"IPv4", Headers{Proto: ProtoUDP, Src: src4, Dst: dst4}, v4ends + "00 11 04d2"},
		{"IPv6", Headers{V6: true, Proto: ProtoTCP, Src: src6, Dst: dst6}, v6ends + "000004d2 000000 06"},
	} {
		if got, want := Fold(PseudoSum(&tt.h, 1234)), slowSum(unhex(t, tt.pseudo)); got != want {
			t.Errorf("%s: %#04x, want %#04x", tt.name, got, want)
		}
	}
	// IPv6's length has 32 bits.
	h := Headers{V6: true, Proto: ProtoTCP, Src: src6, Dst: dst6}
	if got, want := Fold(PseudoSum(&h, 0x12345)), slowSum(unhex(t, v6ends+"00012345 000000 06")); got != want {
		t.Errorf("jumbo length: %#04x, want %#04x", got, want)
	}
}

// change draws a message with a checksum field, and new bytes for a part of it.
func change(t *rapid.T) (before, after []byte, field, from, to int) {
	before = rapid.SliceOfN(rapid.Byte(), 4, 80).Draw(t, "message")
	before = before[:len(before)&^1]
	words := len(before) / 2
	field = rapid.IntRange(0, words-1).Draw(t, "field") * 2
	from = rapid.IntRange(0, words-1).Draw(t, "from") * 2
	to = rapid.IntRange(from/2, words).Draw(t, "to") * 2
	if field >= from && field < to { // the part is not the field
		to = from
	}
	after = bytes.Clone(before)
	for i := from; i < to; i++ {
		after[i] = rapid.SampledFrom([]byte{0, 1, 0x7f, 0xff, before[i] ^ 0x55}).Draw(t, "byte")
	}
	return before, after, field, from, to
}

func TestUpdateIsARecomputation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after, field, from, to := change(t)
		binary.BigEndian.PutUint16(before[field:], 0)
		binary.BigEndian.PutUint16(after[field:], 0)
		old := ^slowSum(before)
		// The reference fails where the whole message is zero, and so has no sum to
		// tell zero from all ones by; no packet is.
		got, want := Update(old, before[from:to], after[from:to]), ^slowSum(after)
		if !same(got, want) {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
		binary.BigEndian.PutUint16(after[field:], got)
		if s := slowSum(after); !same(s, 0xffff) {
			t.Fatalf("the message sums to %#04x", s)
		}
		// A checksum that was wrong by d stays wrong by d.
		d := rapid.Uint16Range(1, 0xfffe).Draw(t, "d")
		wrong := Update(slowSum(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, old), d)), before[from:to], after[from:to])
		binary.BigEndian.PutUint16(after[field:], wrong)
		if s := slowSum(after); same(s, 0xffff) {
			t.Fatalf("a checksum wrong by %#x was repaired", d)
		}
	})
}

func TestUpdatePartialIsARecomputation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after, _, from, to := change(t)
		got, want := UpdatePartial(slowSum(before), before[from:to], after[from:to]), slowSum(after)
		if !same(got, want) {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}

// TestUpdateKeepsTheFormOfZero: a transport checksum whose message is not zero
// must not come out as 0xffff where recomputing gives 0x0000, or the other way
// round (RFC 1624 section 3 against RFC 1141).
func TestUpdateKeepsTheFormOfZero(t *testing.T) {
	// RFC 1624 section 4: field 0xdd2f, word 0x5555 becomes 0x3285.
	if got := Update(0xdd2f, []byte{0x55, 0x55}, []byte{0x32, 0x85}); got != 0 {
		t.Errorf("%#04x, want 0x0000", got)
	}
}

func TestSCTPChecksum(t *testing.T) {
	// CRC32c of RFC 3720 appendix B.4 (32 bytes of zero: aa 36 91 8a on the wire)
	// makes the vector: a packet of zeros has its checksum field as zero too.
	if got := SCTPChecksum(make([]byte, 32)); got != 0x8a9136aa {
		t.Errorf("%#08x, want 0x8a9136aa", got)
	}
	// The field itself does not take part.
	b := make([]byte, 32)
	copy(b[8:], []byte{1, 2, 3, 4})
	if got := SCTPChecksum(b); got != 0x8a9136aa {
		t.Errorf("with a field: %#08x, want 0x8a9136aa", got)
	}
	b[31] = 1
	if got := SCTPChecksum(b); got == 0x8a9136aa {
		t.Error("a changed last byte does not show")
	}
}

func TestChecksumsAllocateNothing(t *testing.T) {
	b := make([]byte, 1500)
	h := Headers{Src: src4, Dst: dst4}
	if n := testing.AllocsPerRun(100, func() {
		_ = Fold(Sum(b, PseudoSum(&h, len(b))))
		Update(1, b[:4], b[4:8])
		UpdatePartial(1, b[:4], b[4:8])
		SCTPChecksum(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1448)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		Sum(buf, 0)
	}
}
