package fib

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"vswitch/internal/wire"
)

// Readers run while routes come, change and go, arrays are rebuilt included.
// Each next hop that a writer sets carries its address's number, so a hop read
// for one address and found under another, or a torn one, shows. Routes
// that stay must never be missed.
func TestReadersNeverSeeATornOrMissingRoute(t *testing.T) {
	const (
		addrs    = 2048 // per family; every fourth stays for the whole test
		changes  = 60000
		versions = 1 << 12
	)
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			table := New()
			stays := func(i uint32) bool { return i%4 == 0 }
			hop := func(i, version uint32) NextHop { return NextHop{Port, i<<12 | version} }
			for i := range uint32(addrs) {
				if stays(i) {
					table.SetHost(family.addr(i), hop(i, 0))
				}
			}
			var done atomic.Bool
			var wg sync.WaitGroup
			for n := range uint64(2) {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(n, 2))
					for !done.Load() {
						i := r.Uint32N(addrs)
						a := wire.AddrFrom(family.addr(i))
						switch got := table.Lookup(&a); {
						case got == NextHop{} && !stays(i):
						case got == NextHop{}:
							t.Errorf("route of address %d is missing", i)
							return
						case got.Kind != Port || got.Index>>12 != i:
							t.Errorf("address %d has %v, which is address %d's", i, got, got.Index>>12)
							return
						}
					}
				})
			}
			r := rand.New(rand.NewPCG(9, 9))
			for range changes {
				i := r.Uint32N(addrs)
				if stays(i) || r.IntN(2) == 0 {
					table.SetHost(family.addr(i), hop(i, r.Uint32N(versions)))
				} else {
					table.DeleteHost(family.addr(i))
				}
			}
			done.Store(true)
			wg.Wait()
		})
	}
}

// Two addresses of one line and one tag take turns in a slot, so that every read
// of one meets the other's. In IPv6 it is the line's third, whose address and state
// lie on different cache lines: between their loads most can happen.
func TestReadersOfOneSlotNeverMixItsRoutes(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			table := New()
			const first = 0
			alike := func(i uint32, tag bool) bool {
				x, y := family.hash(table, i), family.hash(table, first)
				lines := uint64(family.fill(table).lines)
				return x%lines == y%lines && (tagOf(x) == tagOf(y)) == tag
			}
			next := uint32(first + 1)
			for before := 0; before < 2; next++ {
				if alike(next, false) {
					table.SetHost(family.addr(next), NextHop{Port, 9})
					before++
				}
			}
			second := next
			for !alike(second, true) {
				second++
			}
			addrs := [2]wire.Addr{wire.AddrFrom(family.addr(first)), wire.AddrFrom(family.addr(second))}
			var done atomic.Bool
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; !done.Load(); i ^= 1 {
					if got := table.Lookup(&addrs[i]); got != (NextHop{}) && got != (NextHop{Port, uint32(i)}) {
						t.Errorf("address %d has %v", i, got)
						return
					}
				}
			})
			for i := range uint32(300000) {
				a := addrs[i%2].Netip()
				table.SetHost(a, NextHop{Port, i % 2})
				table.DeleteHost(a)
			}
			done.Store(true)
			wg.Wait()
		})
	}
}

// A slot that is empty, in use and empty again differs each time, or a reader
// that was held up in between would take one address's route for the other's.
func TestASlotNeverReturnsToAnEarlierState(t *testing.T) {
	table := New()
	a := key6{0x20010db8 << 32, 1}
	seen := map[uint64]bool{}
	for range 100 {
		table.SetHost(a.addr(), NextHop{Port, 1})
		l, i, _ := table.hosts6.array.Load().find(a)
		state := l.slots[i].state.Load()
		if seen[state] {
			t.Fatalf("state %#x came back", state)
		}
		seen[state] = true
		table.DeleteHost(a.addr())
	}
}

// What one goroutine has set, another that is told so afterwards finds: a
// lookup is never older than a change that was complete when it began.
func TestLookupSeesEveryChangeThatCameBefore(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			table := New()
			a := family.addr(1)
			var latest atomic.Uint32
			var wg sync.WaitGroup
			table.SetHost(a, NextHop{Port, 0})
			const last = 20000
			wg.Go(func() {
				for n := uint32(1); n <= last; n++ {
					table.SetHost(a, NextHop{Port, n})
					latest.Store(n)
					// Neighbours come and go, so that the array is rebuilt under it.
					table.SetHost(family.addr(1+n), NextHop{Port, n})
					if n > 500 {
						table.DeleteHost(family.addr(1 + n - 500))
					}
				}
			})
			addr := wire.AddrFrom(a)
			for n := uint32(0); n < last; {
				n = latest.Load()
				if got := table.Lookup(&addr); got.Index < n {
					t.Errorf("change %d was made, lookup gives %v", n, got)
					break
				}
			}
			wg.Wait()
		})
	}
}

func TestPrefixesMayChangeUnderReaders(t *testing.T) {
	table := New()
	under := netip.MustParsePrefix("192.0.2.0/24")
	over := netip.MustParsePrefix("192.0.0.0/16")
	table.SetPrefix(over, NextHop{Peer, 16})
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		a := wire.AddrFrom(netip.MustParseAddr("192.0.2.9"))
		for !done.Load() {
			if got := table.Lookup(&a); got != (NextHop{Peer, 16}) && got != (NextHop{Peer, 24}) {
				t.Errorf("got %v", got)
				return
			}
		}
	})
	for range 2000 {
		table.SetPrefix(under, NextHop{Peer, 24})
		table.DeletePrefix(under)
	}
	done.Store(true)
	wg.Wait()
}

// Routes take turns so that one of them covers the address at any moment, a
// longer and a shorter one in either order, and the lookup must never fall between two of
// them. The lengths themselves come and go.
func TestALookupNeverFallsBetweenTwoChanges(t *testing.T) {
	for _, family := range []struct{ name, addr, long, short string }{
		{"IPv4", "192.0.2.9", "192.0.2.0/24", "192.0.0.0/16"},
		{"IPv6", "2001:db8::9", "2001:db8::/64", "2001:db8::/32"},
		{"IPv4, a host route", "192.0.2.9", "192.0.2.9/32", "192.0.2.0/24"},
		{"IPv6, a host route", "2001:db8::9", "2001:db8::9/128", "2001:db8::/64"},
	} {
		t.Run(family.name, func(t *testing.T) {
			long, short := netip.MustParsePrefix(family.long), netip.MustParsePrefix(family.short)
			table := New()
			table.SetPrefix(short, NextHop{Peer, 2})
			var done atomic.Bool
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					a := wire.AddrFrom(netip.MustParseAddr(family.addr))
					for !done.Load() {
						if got := table.Lookup(&a); got.Kind != Peer {
							t.Errorf("got %v", got)
							return
						}
					}
				})
			}
			for range 4000 {
				table.SetPrefix(long, NextHop{Peer, 1})
				table.DeletePrefix(short)
				table.SetPrefix(short, NextHop{Peer, 2})
				table.DeletePrefix(long)
			}
			done.Store(true)
			wg.Wait()
		})
	}
}
