package fib

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"vswitch/internal/wire"
)

// twin is the table as thirty plain lines would have it.
type twin map[netip.Prefix]NextHop

func (w twin) lookup(a netip.Addr) NextHop {
	best, hop := -1, NextHop{}
	for p, nh := range w {
		if p.Contains(a) && p.Bits() > best {
			best, hop = p.Bits(), nh
		}
	}
	return hop
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
			if got := lookup(table, b); got != want.lookup(b) {
				t.Fatalf("seed %d step %d: Lookup(%v) = %v, want %v", seed, step, b, got, want.lookup(b))
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
			if got := family.fill(table); got.slots > 1024 || got.live != 10 {
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
				if f := family.fill(table); f.slots > 512 || f.used > f.slots/8*5 {
					t.Fatalf("at change %d: %+v", i, *f)
				}
			}
		})
	}
}

var families = []struct {
	name string
	addr func(i uint32) netip.Addr
	home func(t *Table, i uint32) uint64 // first slot of a chain
	fill func(*Table) *fill
}{
	{
		"IPv4",
		func(i uint32) netip.Addr { return addr4(10<<24 + i) },
		func(t *Table, i uint32) uint64 { return t.hosts4.array.Load().home(10<<24+i) % minSlots },
		func(t *Table) *fill { return &t.hosts4.fill },
	},
	{
		"IPv6",
		func(i uint32) netip.Addr { return key6{0x20010db8 << 32, uint64(i)}.addr() },
		func(t *Table, i uint32) uint64 {
			return t.hosts6.array.Load().home(key6{0x20010db8 << 32, uint64(i)}) % minSlots
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
	for _, nh := range []NextHop{{}, {Kind: kinds}, {Kind: graveKind}, {Kind: Port, Index: MaxIndex + 1}} {
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
	for _, s := range []string{"192.0.2.1", "198.51.100.9", "203.0.113.1", "2001:db8::1", "2001:db8:1::9", "2001:db8:2::1"} {
		a := wire.AddrFrom(netip.MustParseAddr(s))
		if n := testing.AllocsPerRun(100, func() { table.Lookup(&a) }); n != 0 {
			t.Errorf("Lookup(%s): %v allocations", s, n)
		}
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
