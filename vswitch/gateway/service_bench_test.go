package gateway

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"vswitch/internal/wire"
)

// filled is a gateway with n services of ten endpoints each, as a node with as many
// pods sees them.
func filled(t testing.TB, g *Gateway, n int) {
	t.Helper()
	for i := range n {
		s := Service{
			ServiceKey: ServiceKey{Namespace: "default", Name: fmt.Sprint("many-", i)},
			Protocol:   wire.ProtoTCP, Port: 80, VIPs: []netip.Addr{manyVIP(i)},
		}
		for e := range 10 {
			at := 10*i + e
			s.Endpoints = append(s.Endpoints, Endpoint{
				Addr: netip.AddrFrom4([4]byte{10, 200 + byte(at>>16), byte(at >> 8), byte(at)}),
				Port: 8080, ID: uint64(at+1) * 0x9e3779b97f4a7c15, Cluster: true, Local: at%50 == 0, OnNode: at%50 == 0,
			})
		}
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
	}
}

func manyVIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

const manyServices = 10_000

// BenchmarkLoadServices is 10,000 services with 100,000 endpoints, from nothing.
func BenchmarkLoadServices(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		b.StopTimer()
		g := newTestGateway(b, nil)
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		filled(b, g, manyServices)
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		b.StartTimer()
	}
}

// BenchmarkPick is a choice among 10 services, and among 10,000: every flow to
// another, as on a busy node.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{10, manyServices} {
		b.Run(fmt.Sprint(n, "-services"), func(b *testing.B) {
			g := newTestGateway(b, nil)
			filled(b, g, n)
			key := keyTo(vip4, 80, wire.ProtoTCP)
			for i := 0; b.Loop(); i++ {
				key.Dst = wire.AddrFrom(manyVIP(i * 7919 % n))
				g.Pick(key, nil)
			}
		})
	}
}

// BenchmarkChangeEndpoint is one of a thousand endpoints of one service becoming
// ready, or not, among 10,000 other services.
func BenchmarkChangeEndpoint(b *testing.B) {
	g := newTestGateway(b, nil)
	filled(b, g, manyServices)
	s := web(500)
	s.VIPs = []netip.Addr{vip6, netip.MustParseAddr("10.97.0.80")}
	for i := 0; b.Loop(); i++ {
		s.Endpoints[i%1000].Cluster = !s.Endpoints[i%1000].Cluster
		if err := g.PutService(s); err != nil {
			b.Fatal(err)
		}
	}
}
