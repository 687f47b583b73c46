package link

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// BenchmarkDeliver is what a TCP packet costs on its way to a connection of the
// netstack, whole or as a super-frame.
func BenchmarkDeliver(b *testing.B) {
	for name, size := range map[string]int{"1448": 1448, "64k": 63 << 10} {
		b.Run(name, func(b *testing.B) {
			l := newLink(b, 1, 64, nil)
			s := stack.New(stack.Options{
				NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
				TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
			})
			defer s.Destroy()
			if err := s.CreateNIC(1, l.Whole()); err != nil {
				b.Fatal(err)
			}
			if err := s.SetPromiscuousMode(1, true); err != nil {
				b.Fatal(err)
			}
			delivered := 0
			s.SetTransportProtocolHandler(tcp.ProtocolNumber, func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
				if pkt.Data().Size() != size {
					b.Fatalf("%d bytes delivered, want %d", pkt.Data().Size(), size)
				}
				delivered++
				return true
			})
			p := wiretest.Packet{
				Src: pod4, Dst: world4, Proto: wire.ProtoTCP, SrcPort: 40000, DstPort: 80, Flags: wire.ACK,
				Payload: bytes.Repeat([]byte{1}, size),
			}
			f := frame.New()
			f.Set(p.Frame())
			f.VNet = frame.VNet{Flags: frame.NeedsCsum, CsumStart: 34, CsumOffset: 16}
			fs := []*frame.Frame{f}
			b.SetBytes(int64(size))
			n := 0
			for b.Loop() {
				l.Queue(0).Transmit(fs)
				if n++; f.Drop != drop.None {
					b.Fatal(f.Drop)
				}
			}
			if delivered != n {
				b.Fatalf("%d of %d delivered", delivered, n)
			}
		})
	}
}
