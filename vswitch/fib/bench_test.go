package fib

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vswitch/internal/wire"
)

// The goals, a core: 60 M lookups/s (17 ns) with 5,000 node prefixes and 110 local
// pods, 20 M/s (50 ns) with 1,000,000 host routes, random hits; and 0.95 of the
// quiet rate while 100,000 host routes a second change.

const (
	benchNodes  = 5000
	benchPods   = 110
	benchRoutes = 1_000_000
	benchProbes = 1 << 20 // distinct addresses asked for, so that they do not stay in the cache by themselves
)

func pod4(node, i int) netip.Addr {
	return addr4(10<<24 + uint32(node)<<8 + uint32(i))
}

func pod6(node, i int) netip.Addr {
	return key6{0xfd00_0010_0244_0000 + uint64(node), uint64(i)}.addr()
}

// node is a table as a node of a large cluster has it.
func node() *Table {
	t := New()
	for n := 1; n <= benchNodes; n++ {
		t.SetPrefix(netip.PrefixFrom(pod4(n, 0), 24), NextHop{Peer, uint32(n)})
		t.SetPrefix(netip.PrefixFrom(pod6(n, 0), 64), NextHop{Peer, uint32(n)})
	}
	for i := range benchPods {
		t.SetHost(pod4(0, i+2), NextHop{Port, uint32(i)})
		t.SetHost(pod6(0, i+2), NextHop{Port, uint32(i)})
	}
	return t
}

// million is a table whose pods are routed one by one, in random places.
func million(addr func(i int) netip.Addr) *Table {
	t := New()
	for i := range benchRoutes {
		t.SetHost(addr(i), NextHop{Port, uint32(i)})
	}
	return t
}

func scattered4(i int) netip.Addr { return addr4(uint32(i) * 2654435761) } // a permutation of all addresses
func scattered6(i int) netip.Addr {
	return key6{0x20010db8 << 32, uint64(i) * 0x9e3779b97f4a7c15}.addr()
}

func probes(addr func(r *rand.Rand) netip.Addr) []wire.Addr {
	r := rand.New(rand.NewPCG(1, 1))
	out := make([]wire.Addr, benchProbes)
	for i := range out {
		out[i] = wire.AddrFrom(addr(r))
	}
	return out
}

func benchLookups(b *testing.B, t *Table, addrs []wire.Addr, want Kind) {
	i := 0
	for b.Loop() {
		if t.Lookup(&addrs[i&(benchProbes-1)]).Kind != want {
			b.Fatalf("Lookup(%v) is not a %v", addrs[i&(benchProbes-1)], want)
		}
		i++
	}
	b.ReportMetric(1e3/(float64(b.Elapsed().Nanoseconds())/float64(b.N)), "Mlookups/s")
}

// benchBatches looks up as a worker does that warms a batch first.
func benchBatches(b *testing.B, t *Table, addrs []wire.Addr, want Kind) {
	const batch = 32
	i := 0
	for b.Loop() {
		k := i & (benchProbes - 1)
		if i%batch == 0 {
			t.Warm(addrs[k : k+batch])
		}
		if t.Lookup(&addrs[k]).Kind != want {
			b.Fatalf("Lookup(%v) is not a %v", addrs[k], want)
		}
		i++
	}
	b.ReportMetric(1e3/(float64(b.Elapsed().Nanoseconds())/float64(b.N)), "Mlookups/s")
}

func BenchmarkLookupNode(b *testing.B) {
	t := node()
	for _, tc := range []struct {
		name string
		addr func(r *rand.Rand) netip.Addr
		want Kind
	}{
		{"IPv4/local-pod", func(r *rand.Rand) netip.Addr { return pod4(0, 2+r.IntN(benchPods)) }, Port},
		{"IPv4/other-node", func(r *rand.Rand) netip.Addr { return pod4(1+r.IntN(benchNodes), r.IntN(256)) }, Peer},
		{"IPv4/miss", func(r *rand.Rand) netip.Addr { return addr4(11<<24 + r.Uint32N(1<<24)) }, None},
		{"IPv6/local-pod", func(r *rand.Rand) netip.Addr { return pod6(0, 2+r.IntN(benchPods)) }, Port},
		{"IPv6/other-node", func(r *rand.Rand) netip.Addr { return pod6(1+r.IntN(benchNodes), r.IntN(256)) }, Peer},
		{"IPv6/miss", func(r *rand.Rand) netip.Addr { return key6{0x20010db8 << 32, r.Uint64()}.addr() }, None},
	} {
		addrs := probes(tc.addr)
		b.Run(tc.name, func(b *testing.B) { benchLookups(b, t, addrs, tc.want) })
		b.Run(tc.name+"-batch-of-32", func(b *testing.B) { benchBatches(b, t, addrs, tc.want) })
	}
}

func BenchmarkLookupMillionHosts(b *testing.B) {
	for _, tc := range []struct {
		name string
		addr func(i int) netip.Addr
	}{{"IPv4", scattered4}, {"IPv6", scattered6}} {
		t := million(tc.addr)
		hits := probes(func(r *rand.Rand) netip.Addr { return tc.addr(r.IntN(benchRoutes)) })
		misses := probes(func(r *rand.Rand) netip.Addr { return tc.addr(benchRoutes + r.IntN(benchRoutes)) })
		b.Run(tc.name+"/hit", func(b *testing.B) { benchLookups(b, t, hits, Port) })
		b.Run(tc.name+"/hit-batch-of-32", func(b *testing.B) { benchBatches(b, t, hits, Port) })
		b.Run(tc.name+"/miss", func(b *testing.B) { benchLookups(b, t, misses, None) })
		b.Run(tc.name+"/hit-batch-of-32-under-100k-changes-per-s", func(b *testing.B) {
			if runtime.GOMAXPROCS(0) < 2 {
				b.Skip("needs a second CPU for the writer")
			}
			stop := churn(t, tc.addr, 100_000)
			benchBatches(b, t, hits, Port)
			made := stop()
			b.ReportMetric(float64(made)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// churn deletes and sets routes outside those asked for, perSecond changes, in
// bursts of a millisecond, until stopped; stop tells how many were made.
func churn(t *Table, addr func(i int) netip.Addr, perSecond int) (stop func() int) {
	var done atomic.Bool
	var made int
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 2 * benchRoutes; !done.Load(); <-tick.C {
			for range perSecond / 1000 / 2 {
				t.SetHost(addr(i), NextHop{Port, 1})
				t.DeleteHost(addr(i - 1000))
				i++
				made += 2
			}
		}
	})
	return func() int { done.Store(true); wg.Wait(); return made }
}

func BenchmarkSetHost(b *testing.B) {
	t := million(scattered4)
	i := benchRoutes
	for b.Loop() {
		t.SetHost(scattered4(i), NextHop{Port, 1})
		t.DeleteHost(scattered4(i))
		i++
	}
}
