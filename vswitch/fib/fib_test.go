package fib

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"vswitch/internal/wire"
)

// twin is the table as thirty plain lines would have it.
type twin map[netip.Prefix]NextHop

func (w twin) route(a netip.Addr) (best netip.Prefix, hop NextHop) {
	for p, nh := range w {
		if p.Contains(a) && (!best.IsValid() || p.Bits() > best.Bits()) {
			best, hop = p, nh
		}
	}
	return best, hop
}

func lookup(t *Table, a netip.Addr) NextHop {
	addr := wire.AddrFrom(a)
	return t.Lookup(&addr)
}

// randomAddr draws from few addresses, so that changes, deletions and lookups meet.
func randomAddr(r *rand.Rand) netip.Addr {
	n := byte(r.IntN(256))
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{192, 0, n >> 6 << 1, n})
	}
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: n >> 6, 15: n})
}

func randomHop(r *rand.Rand) NextHop {
	return NextHop{Kind: Kind(1 + r.IntN(int(kinds)-1)), Index: uint32(r.IntN(MaxIndex + 1))}
}

func TestTableEqualsItsTwinUnderRandomChanges(t *testing.T) {
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 1))
		table, want := New(), twin{}
		for step := range 6000 {
			a := randomAddr(r)
			p := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
			host := netip.PrefixFrom(a, a.BitLen())
			switch r.IntN(6) {
			case 0, 1:
				nh := randomHop(r)
				table.SetHost(a, nh)
				want[host] = nh
			case 2:
				_, had := want[host]
				delete(want, host)
				if got := table.DeleteHost(a); got != had {
					t.Fatalf("seed %d step %d: DeleteHost(%v) = %v, want %v", seed, step, a, got, had)
				}
			case 3:
				nh := randomHop(r)
				table.SetPrefix(p, nh)
				want[p] = nh
			case 4:
				_, had := want[p]
				delete(want, p)
				if got := table.DeletePrefix(p); got != had {
					t.Fatalf("seed %d step %d: DeletePrefix(%v) = %v, want %v", seed, step, p, got, had)
				}
			}
			b := randomAddr(r)
			prefix, hop := want.route(b)
			if got := lookup(table, b); got != hop {
				t.Fatalf("seed %d step %d: Lookup(%v) = %v, want %v", seed, step, b, got, hop)
			}
			at := wire.AddrFrom(b)
			if p, got := table.Route(&at); p != prefix || got != hop {
				t.Fatalf("seed %d step %d: Route(%v) = %v by %v, want %v by %v", seed, step, b, got, p, hop, prefix)
			}
			if step%1000 == 0 {
				if got := maps.Collect(table.All()); !maps.Equal(got, want) {
					t.Fatalf("seed %d step %d: All has %d routes, want %d", seed, step, len(got), len(want))
				}
			}
		}
	}
}

// Growing, filling with graves and shrinking again must lose nothing, at sizes
// where every step happens many times over.
func TestHostRoutesSurviveGrowthAndShrinking(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			const n = 20000
			table := New()
			check := func(from, to uint32) {
				t.Helper()
				for i := range uint32(n) {
					want := NextHop{}
					if i >= from && i < to {
						want = NextHop{Port, i}
					}
					if got := lookup(table, family.addr(i)); got != want {
						t.Fatalf("with routes [%d, %d): Lookup(%v) = %v, want %v", from, to, family.addr(i), got, want)
					}
				}
			}
			for i := range uint32(n) {
				table.SetHost(family.addr(i), NextHop{Port, i})
			}
			check(0, n)
			for i := range uint32(n - 10) {
				if !table.DeleteHost(family.addr(i)) {
					t.Fatalf("DeleteHost(%v) = false", family.addr(i))
				}
			}
			check(n-10, n)
			if got := family.fill(table); got.slots() > 1024 || got.live != 10 {
				t.Errorf("after deleting all but 10 routes: %+v, want at most 1024 slots and 10 live", *got)
			}
		})
	}
}

// A table whose routes come and go must not fill up with graves: its size
// follows from the routes it has, and a chain always ends.
func TestChurnKeepsTheTableSmall(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			table := New()
			for i := range uint32(200000) {
				table.SetHost(family.addr(i), NextHop{Port, 1})
				if i >= 100 && !table.DeleteHost(family.addr(i-100)) {
					t.Fatalf("DeleteHost(%v) = false", family.addr(i-100))
				}
				if f := family.fill(table); f.slots() > 512 {
					t.Fatalf("at change %d: %+v", i, *f)
				}
			}
		})
	}
}

// Addresses as clusters give them, differing in a few bits, must fill lines as
// random ones do: no more entries lie behind their line.
func TestRegularAddressesSpreadEvenly(t *testing.T) {
	const n = 14000
	r := rand.New(rand.NewPCG(1, 1))
	random := func(f *fill) (behind int) { // entries that pass a line, homes being random
		count := make([]int, f.lines)
		for range f.live {
			i := r.IntN(f.lines)
			for ; count[i] == f.perLine; i = (i + 1) % f.lines {
				behind++
			}
			count[i]++
		}
		return behind
	}
	for _, tc := range []struct {
		name  string
		route func(i int) netip.Prefix
	}{
		{"IPv4 pods of one node", func(i int) netip.Prefix { return netip.PrefixFrom(addr4(10<<24+uint32(i)), 32) }},
		{"IPv4 node prefixes", func(i int) netip.Prefix { return netip.PrefixFrom(addr4(uint32(i)<<8), 24) }},
		{"IPv6 pods of one node", func(i int) netip.Prefix { return netip.PrefixFrom(key6{0xfd00 << 48, uint64(i)}.addr(), 128) }},
		{"IPv6 pods with both halves alike", func(i int) netip.Prefix { return netip.PrefixFrom(key6{uint64(i), uint64(i)}.addr(), 128) }},
		{"IPv6 node prefixes", func(i int) netip.Prefix { return netip.PrefixFrom(key6{0xfd00<<48 + uint64(i), 0}.addr(), 64) }},
		{"IPv6 short prefixes", func(i int) netip.Prefix { return netip.PrefixFrom(key6{0x2001<<48 + uint64(i)<<16, 0}.addr(), 48) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := New()
			for i := range n {
				table.SetPrefix(tc.route(i), NextHop{Peer, 1})
			}
			e4, e6 := &table.hosts4, &table.hosts6
			if list := *table.prefixes4.longestFirst.Load(); len(list) > 0 {
				e4 = &list[0].table
			}
			if list := *table.prefixes6.longestFirst.Load(); len(list) > 0 {
				e6 = &list[0].table
			}
			behind := 0
			for i := range e4.array.Load().lines {
				behind += int(e4.array.Load().lines[i].tags.Load() >> passedShift)
			}
			for i := range e6.array.Load().lines {
				behind += int(e6.array.Load().lines[i].tags.Load() >> passedShift)
			}
			f := &e4.fill
			if e6.fill.live > 0 {
				f = &e6.fill
			}
			if want := random(f); behind > want*3/2 {
				t.Errorf("%d of %d entries lie behind their line, %d where they are random", behind, n, want)
			}
		})
	}
}

// The longest match among nested prefixes of every length must be a trie's.
func TestLongestMatchEqualsATries(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	table, want := New(), new(bart.Fast[NextHop])
	random := func() netip.Addr { // few bits are random, so that prefixes nest
		n := r.Uint64() & r.Uint64()
		if r.IntN(2) == 0 {
			return addr4(uint32(n))
		}
		return key6{0x2001<<48 | n>>40<<20, n}.addr()
	}
	var routes []netip.Prefix
	for step := range 40000 {
		a := random()
		switch {
		case len(routes) < 5000 || step%3 == 0:
			p, hop := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked(), randomHop(r)
			table.SetPrefix(p, hop)
			want.Insert(p, hop)
			routes = append(routes, p)
		case step%3 == 1:
			i := r.IntN(len(routes))
			_, had := want.Get(routes[i])
			want.Delete(routes[i])
			if got := table.DeletePrefix(routes[i]); got != had {
				t.Fatalf("step %d: DeletePrefix(%v) = %v, want %v", step, routes[i], got, had)
			}
			routes[i] = routes[len(routes)-1]
			routes = routes[:len(routes)-1]
		}
		for range 4 {
			a := random()
			hop, _ := want.Lookup(a)
			if got := lookup(table, a); got != hop {
				t.Fatalf("step %d: Lookup(%v) = %v, want %v", step, a, got, hop)
			}
		}
	}
	i := 0
	for p, hop := range want.AllSorted() {
		if p.IsSingleIP() {
			continue
		}
		if got := table.sortedPrefixes()[i]; got != (route{p, hop}) {
			t.Fatalf("All's prefix %d is %v, want %v by %v", i, got, p, hop)
		}
		if i++; i == 50 {
			break
		}
	}
	// Lengths without routes must be gone.
	for _, p := range routes {
		table.DeletePrefix(p)
	}
	if n4, n6 := len(*table.prefixes4.longestFirst.Load()), len(*table.prefixes6.longestFirst.Load()); n4+n6 != 0 {
		t.Errorf("%d and %d lengths are in use without a route", n4, n6)
	}
}

// An entry that lies behind its line stays found while others come and go before it,
// and its line's count goes back to what it was.
func TestLinesCountWhatLiesBehind(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			table := New()
			var crowd []uint32 // more addresses of one line than it has slots
			for i := uint32(0); len(crowd) < 12; i++ {
				if family.hash(table, i)%32 == family.hash(table, 0)%32 {
					crowd = append(crowd, i)
				}
			}
			r := rand.New(rand.NewPCG(1, 1))
			have := map[uint32]bool{}
			for range 2000 {
				i := crowd[r.IntN(len(crowd))]
				if have[i] = !have[i]; have[i] {
					table.SetHost(family.addr(i), NextHop{Port, i})
				} else {
					table.DeleteHost(family.addr(i))
				}
				for _, i := range crowd {
					if got := lookup(table, family.addr(i)); have[i] != (got == NextHop{Port, i}) {
						t.Fatalf("address %d: %v, and it is there: %v", i, got, have[i])
					}
				}
			}
			for _, i := range crowd {
				table.DeleteHost(family.addr(i))
			}
			for i := range table.hosts4.array.Load().lines {
				if word := table.hosts4.array.Load().lines[i].tags.Load(); word != 0 {
					t.Errorf("empty, and line %d has tags %#x", i, word)
				}
			}
			for i := range table.hosts6.array.Load().lines {
				if word := table.hosts6.array.Load().lines[i].tags.Load(); word != 0 {
					t.Errorf("empty, and line %d has tags %#x", i, word)
				}
			}
		})
	}
}

func TestCandidatesMissNoSlot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		word, tag := r.Uint64(), tagOf(r.Uint64())
		for slot := range 8 {
			if r.IntN(3) == 0 {
				word = word&^(0xff<<(8*slot)) | tag<<(8*slot)
			}
		}
		marks := candidates(word, tag)
		for slot := range slots4 {
			if word>>(8*slot)&0xff == tag && marks>>(8*slot+7)&1 == 0 {
				t.Fatalf("slot %d of %#x is not among candidates %#x", slot, word, marks)
			}
		}
		if marks&^(bytesHigh>>8) != 0 {
			t.Fatalf("candidates %#x", marks)
		}
	}
}

var families = []struct {
	name string
	addr func(i uint32) netip.Addr
	hash func(t *Table, i uint32) uint64
	fill func(*Table) *fill
}{
	{
		"IPv4",
		func(i uint32) netip.Addr { return addr4(10<<24 + i) },
		func(t *Table, i uint32) uint64 {
			return t.hosts4.array.Load().hash(10<<24 + i)
		},
		func(t *Table) *fill { return &t.hosts4.fill },
	},
	{
		"IPv6",
		func(i uint32) netip.Addr { return key6{0x20010db8 << 32, uint64(i)}.addr() },
		func(t *Table, i uint32) uint64 {
			return t.hosts6.array.Load().hash(key6{0x20010db8 << 32, uint64(i)})
		},
		func(t *Table) *fill { return &t.hosts6.fill },
	},
}

func TestSpecialAddresses(t *testing.T) {
	hop := NextHop{Peer, 7}
	for _, tc := range []struct {
		name          string
		route, lookup string
		want          NextHop
	}{
		{"all zeros, IPv4", "0.0.0.0/32", "0.0.0.0", hop},
		{"all ones, IPv4", "255.255.255.255/32", "255.255.255.255", hop},
		{"all zeros, IPv6", "::/128", "::", hop},
		{"all zeros of the other family", "::/128", "0.0.0.0", NextHop{}},
		{"IPv4-mapped host is IPv4", "::ffff:192.0.2.1/128", "192.0.2.1", hop},
		{"IPv4-mapped prefix is IPv4", "::ffff:192.0.2.0/120", "192.0.2.1", hop},
		{"IPv4 default", "0.0.0.0/0", "198.51.100.1", hop},
		{"IPv6 default does not cover IPv4", "::/0", "198.51.100.1", NextHop{}},
		{"IPv6 default", "::/0", "2001:db8::1", hop},
		{"host bits count as zero", "192.0.2.77/24", "192.0.2.1", hop},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := New()
			table.SetPrefix(netip.MustParsePrefix(tc.route), hop)
			if got := lookup(table, netip.MustParseAddr(tc.lookup)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			if !table.DeletePrefix(netip.MustParsePrefix(tc.route)) {
				t.Error("DeletePrefix = false")
			}
			if got := lookup(table, netip.MustParseAddr(tc.lookup)); got != (NextHop{}) {
				t.Errorf("after deletion: got %v", got)
			}
		})
	}
}

func TestHopsThatCannotBeStoredPanic(t *testing.T) {
	for _, nh := range []NextHop{{}, {Kind: kinds}, {Kind: Port, Index: MaxIndex + 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("SetHost(%v) did not panic", nh)
				}
			}()
			New().SetHost(netip.MustParseAddr("192.0.2.1"), nh)
		}()
	}
}

func TestEveryKindHasAName(t *testing.T) {
	seen := map[string]bool{}
	for k := range kinds {
		if k.String() == "" || seen[k.String()] {
			t.Errorf("kind %d is named %q", k, k.String())
		}
		seen[k.String()] = true
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table := New()
	table.SetHost(netip.MustParseAddr("192.0.2.1"), NextHop{Port, 1})
	table.SetHost(netip.MustParseAddr("2001:db8::1"), NextHop{Port, 1})
	table.SetPrefix(netip.MustParsePrefix("198.51.100.0/24"), NextHop{Peer, 1})
	table.SetPrefix(netip.MustParsePrefix("2001:db8:1::/64"), NextHop{Peer, 1})
	var batch []wire.Addr
	for _, s := range []string{"192.0.2.1", "198.51.100.9", "203.0.113.1", "2001:db8::1", "2001:db8:1::9", "2001:db8:2::1"} {
		a := wire.AddrFrom(netip.MustParseAddr(s))
		if n := testing.AllocsPerRun(100, func() { table.Lookup(&a) }); n != 0 {
			t.Errorf("Lookup(%s): %v allocations", s, n)
		}
		batch = append(batch, a)
	}
	if n := testing.AllocsPerRun(100, func() { table.Warm(batch) }); n != 0 {
		t.Errorf("Warm: %v allocations", n)
	}
}

func TestChangingAHostRouteDoesNotAllocate(t *testing.T) {
	table := New()
	for _, s := range []string{"192.0.2.1", "2001:db8::1"} {
		a := netip.MustParseAddr(s)
		n := testing.AllocsPerRun(1000, func() {
			table.SetHost(a, NextHop{Port, 1})
			table.DeleteHost(a)
		})
		if n != 0 {
			t.Errorf("SetHost and DeleteHost of %s: %v allocations", s, n)
		}
	}
}
