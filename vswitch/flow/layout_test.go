package flow

import (
	"math"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"testing"
	"unsafe"

	"vswitch/internal/lasting"
	"vswitch/internal/wire"
)

func TestAConnectionCostsAtMost192Bytes(t *testing.T) {
	for _, n := range []int{100_000, DefaultConnections, 1_000_000, MaxConnections} {
		var x index
		x.plan(n)
		if got := float64(mappingBytes(n)+x.bytes()) / float64(n); got > 192 {
			t.Errorf("%d connections: %.1f bytes each", n, got)
		}
	}
}

func TestPartsLieApartAndAligned(t *testing.T) {
	for _, n := range []int{1, 3, 1000, 1024, 100_001} {
		m, err := lasting.New("flow-test", mappingBytes(n))
		if err != nil {
			t.Fatal(err)
		}
		format(m.Bytes, n)
		l, err := attach(m.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		base := uintptr(unsafe.Pointer(unsafe.SliceData(m.Bytes)))
		ends := []struct {
			name       string
			start, end uintptr
		}{
			{"records", uintptr(unsafe.Pointer(&l.records[0])), uintptr(unsafe.Pointer(&l.records[n-1])) + 128},
			{"forward counters", uintptr(unsafe.Pointer(&l.counters[0][0])), uintptr(unsafe.Pointer(&l.counters[0][n-1])) + 16},
			{"reply counters", uintptr(unsafe.Pointer(&l.counters[1][0])), uintptr(unsafe.Pointer(&l.counters[1][n-1])) + 16},
		}
		at := base + headerBytes
		for _, part := range ends {
			if part.start != at {
				t.Errorf("%d connections: %s begin at %d, want %d", n, part.name, part.start-base, at-base)
			}
			at = part.end
		}
		if at != base+uintptr(len(m.Bytes)) {
			t.Errorf("%d connections: parts end at %d of %d", n, at-base, len(m.Bytes))
		}
		if ends[0].start%128 != 0 {
			t.Errorf("%d connections: records at %#x", n, ends[0].start)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A slot has room for a tag, whatever the table's size.
func TestASlotHoldsTheHighestRecord(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 1 << 10, 1<<20 + 1, MaxConnections} {
		var x index
		x.plan(n)
		const hash = 0x1234_5678_9abc_def1
		tag, mask := x.tag(hash)
		word := x.slotWord(hash, uint32(n-1), Reply)
		if word&mask != tag || word&^mask>>1 != uint32(n-1) || word&1 != 1 || tag>>31 != 1 || bits.OnesCount32(mask) < 7 {
			t.Errorf("%d connections: slot %#x, tag %#x in %#x", n, word, tag, mask)
		}
	}
}

// shapes are ways to choose tuples, as real hosts do and as one does who wants to make
// searches long.
var shapes = map[string]func(i uint32) Key{
	"source ports":     func(i uint32) Key { return Key{SrcPort: uint16(i), DstPort: 80, Proto: wire.ProtoTCP} },
	"both ports equal": func(i uint32) Key { return Key{SrcPort: uint16(i), DstPort: uint16(i), Proto: wire.ProtoTCP} },
	"IPv4 sources":     func(i uint32) Key { return Key{Src: v4(i), DstPort: 80, Proto: wire.ProtoTCP} },
	"IPv4 sources and destinations alike": func(i uint32) Key {
		return Key{Src: v4(i), Dst: v4(i), DstPort: 80, Proto: wire.ProtoTCP}
	},
	"IPv6 prefixes": func(i uint32) Key { return Key{Src: wire.Addr{0x20, 1, 2: byte(i >> 8), 3: byte(i)}} },
}

// A table that is full of whatever tuples is searched in a step or two: the work
// for a packet, of a connection or of none, has a bound that nobody's choice moves (case 24).
func TestNoChoiceOfTuplesMakesSearchesLong(t *testing.T) {
	const n = 1 << 15
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			table := newTable(t, Config{Connections: n, PerOwner: n})
			for i := range uint32(n) {
				k := shape(i)
				s := &Spec{Orig: k, Reply: k.Reverse()}
				s.Reply.Proto ^= 1 // never the same as a forward tuple
				mustInsert(t, table, s, 0, 1)
			}
			longest, total := 0, 0
			for i := range uint32(n) {
				// One that is there, and one that is not.
				present, absent := shape(i), shape(i+n)
				absent.Proto ^= 2
				for _, k := range []Key{present, absent} {
					steps := table.searchLength(table.Hash(&k))
					longest, total = max(longest, steps), total+steps
				}
			}
			if mean := float64(total) / (2 * n); mean > 1.3 || longest > 12 {
				t.Errorf("%.2f chunks a search on average, %d at worst", mean, longest)
			}
		})
	}
}

// searchLength is how many chunks a search that finds nothing looks at.
func (x *index) searchLength(hash uint64) (n int) {
	c, first, end := x.home(hash)
	for {
		if n++; x.chunks[c].passed.Load() == 0 {
			return n
		}
		if c++; c == end {
			c = first
		}
	}
}

// Tuples that differ in one low byte only, as real ones do, must spread over the index
// as random ones would: chi-square over its chunks.
func TestRegularTuplesSpreadEvenly(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			const n = 1 << 16
			table := newTable(t, Config{Connections: 4000})
			counts := make([]float64, len(table.chunks))
			tags := map[uint32]bool{}
			for i := range uint32(n) {
				k := shape(i)
				h := table.Hash(&k)
				c, first, end := table.home(h)
				if c < first || c >= end || int(end) > len(counts) {
					t.Fatalf("home of %#x: chunk %d of shard [%d, %d)", h, c, first, end)
				}
				counts[c]++
				tags[uint32(h)] = true
			}
			mean, chi2 := n/float64(len(counts)), 0.0
			for _, c := range counts {
				chi2 += (c - mean) * (c - mean) / mean
			}
			// chi-square has len-1 degrees of freedom: mean len-1, variance twice that. Six sigma.
			if free := float64(len(counts) - 1); math.Abs(chi2-free) > 6*math.Sqrt(2*free) {
				t.Errorf("chi-square %.0f over %d chunks", chi2, len(counts))
			}
			if len(tags) < n-20 { // half a collision of 32 bits expected
				t.Errorf("%d different tags of %d", len(tags), n)
			}
		})
	}
}

// The hash against its definition in whole numbers: NH over the five words and a
// zero sixth, modulo 2^128, and the fold.
func TestHashIsNH(t *testing.T) {
	table := newTable(t, Config{Connections: 1})
	word := func(v uint64) *big.Int { return new(big.Int).SetUint64(v) }
	mod64, mod128 := new(big.Int).Lsh(big.NewInt(1), 64), new(big.Int).Lsh(big.NewInt(1), 128)
	r := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		k := randomSpec(r).Orig
		for i := range k.Src {
			k.Src[i] = byte(r.Uint32())
		}
		src0, src1, dst0, dst1, ports := k.words()
		key, m := table.hashKey, [6]uint64{src0, src1, dst0, dst1, ports, 0}
		sum := new(big.Int)
		for i := 0; i < len(m); i += 2 {
			a := new(big.Int).Add(word(m[i]), word(key[i]))
			b := new(big.Int).Add(word(m[i+1]), word(key[i+1]))
			sum.Add(sum, a.Mul(a.Mod(a, mod64), b.Mod(b, mod64)))
		}
		sum.Mod(sum, mod128)
		hi, lo := new(big.Int).DivMod(sum, mod64, new(big.Int))
		fold := new(big.Int).Mul(word(hi.Uint64()^key[6]), word(lo.Uint64()^key[7]))
		hi, lo = hi.DivMod(fold, mod64, lo)
		if got, want := table.Hash(&k), hi.Uint64()^lo.Uint64(); got != want {
			t.Fatalf("Hash(%+v) = %#x, want %#x", k, got, want)
		}
	}
}

func TestTablesHashDifferently(t *testing.T) {
	a, b := newTable(t, Config{Connections: 1}), newTable(t, Config{Connections: 1})
	k := numbered(1).Orig
	if a.Hash(&k) == b.Hash(&k) {
		t.Error("two tables share a hash key")
	}
}

func TestWarmGuessesTheRecordThatLookupFinds(t *testing.T) {
	const n = 1000
	table := newTable(t, Config{Connections: n, PerOwner: n})
	hashes := make([]uint64, n)
	for i := range uint32(n) {
		s := numbered(i)
		mustInsert(t, table, s, 0, 1)
		hashes[i] = table.Hash(&s.Reply)
	}
	right := 0
	for i := range uint32(n) {
		c, _, _ := table.home(hashes[i])
		hit, _ := lookup(table, numbered(i).Reply, 1)
		if table.chunks[c].guess(table.tag(hashes[i])) == uint32(hit.Ref)<<1|uint32(hit.Dir) {
			right++
		}
	}
	if right < n*9/10 { // the rest lie outside their home chunk
		t.Errorf("%d guesses of %d are right", right, n)
	}
	for _, length := range []int{0, 1, warmBatch, warmBatch + 1, n} {
		table.warm(hashes[:length])
	}
}
