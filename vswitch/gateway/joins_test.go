package gateway

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"vswitch/internal/lab/labtest"
	"vswitch/internal/share"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Datagrams in two pieces, each joined before the next begins: what the netstack
// keeps of them is bounded, for one pod and all.
func TestJoinedDatagramsAreBounded(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, nil)
		perMinute := 4000
		if labtest.Long() {
			perMinute = joinsPerMinute
		}
		g.joins.minute.Store(share.New[wire.Addr](int64(perMinute)))
		sink, err := net.ListenPacket(fam.udp, net.JoinHostPort(fam.loopback, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		port := sink.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		pieces := func(src netip.Addr) (fs []*frame.Frame) {
			whole := wiretest.Packet{Src: src, Proto: wire.ProtoUDP, Dst: fam.host, SrcPort: 1000, DstPort: port, Payload: make([]byte, 100)}
			for _, b := range wiretest.Fragments(whole.Frame(), 77, 64, 0) {
				f := frame.New()
				f.Set(b)
				fs = append(fs, f)
			}
			return fs
		}
		other := netip.MustParseAddr("10.244.1.66")
		if fam.pod.Is6() {
			other = netip.MustParseAddr("fd00:10:244:1::66")
		}
		flood, little := pieces(fam.pod), pieces(other)
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before, joined := heap(), 0
		for n.Inject(flood[0]) == drop.None {
			n.Inject(flood[1])
			joined++
		}
		if joined != perMinute/2 {
			t.Errorf("%d datagrams of one pod joined, want %d", joined, perMinute/2)
		}
		const bytesEach = 400
		if after := heap(); after > before+bytesEach*uint64(joined)+1<<20 {
			t.Errorf("%d bytes became %d", before, after)
		}
		if r := n.Inject(flood[0]); r != drop.EgressFull {
			t.Errorf("one more: %v, want %v", r, drop.EgressFull)
		}
		if s := g.Stats(); s.DatagramsOut < uint64(joined) {
			t.Errorf("%d datagrams sent of %d joined", s.DatagramsOut, joined)
		}
		if r := n.Inject(little[0]); r != drop.None {
			t.Errorf("another pod: %v", r)
		}
		g.sweep(g.tick.Load() + joinMinute)
		if r := n.Inject(flood[0]); r != drop.None {
			t.Errorf("a minute later: %v", r)
		}
	})
}
