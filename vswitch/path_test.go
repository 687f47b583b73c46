package vswitch

import (
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
)

// onePath says the same of every peer.
type onePath int

func (p onePath) PathMTU(uint32) int { return int(p) }

// What is known of the way to a peer bounds packets like the port's MTU, and never
// beyond it.
func TestPathMTUBoundsPackets(t *testing.T) {
	for _, tt := range []struct {
		path, size int // bytes of IP packet
		fits       bool
	}{{0, 1400, true}, {1300, 1300, true}, {1300, 1301, false}, {1500, 1401, false}} {
		d := newHandDriven(t, 1400)
		d.b.paths = onePath(tt.path)
		packet := wiretest.Packet{Dst: straightToB, DontFragment: true, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, tt.size-28)}
		d.serve(1, d.fromA(packet))
		if sent := len(d.out.sent) == 1; sent != tt.fits || !tt.fits && d.drops(drop.TooBig) != 1 {
			t.Errorf("path %d: a packet of %d bytes is sent: %v, drops %v", tt.path, tt.size, sent, d.a.stats().Drops)
		}
		if tt.fits {
			continue
		}
		packet.DontFragment = false
		d.serve(1, d.fromA(packet))
		for _, raw := range d.out.sent {
			var h wire.Headers
			if r := wire.Parse(raw, &h); r != drop.None || h.End-h.L3Off > min(tt.path, 1400) {
				t.Errorf("path %d: a piece of %d bytes, %v", tt.path, h.End-h.L3Off, r)
			}
		}
		if len(d.out.sent) != 2 {
			t.Errorf("path %d: %d pieces, want 2", tt.path, len(d.out.sent))
		}
	}
}
