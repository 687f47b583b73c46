//go:build linux

package vxlan_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Something between two nodes changes packets and makes the outer checksum right
// again. What comes out of the tunnel for it still has a wrong checksum, in a frame
// of its own; what came whole is whole, and nothing changes its place.
func TestDamagedOnTheWayStaysDamaged(t *testing.T) {
	const size, packets = 1000, 23
	for name, super := range map[string]*offloadtest.Packet{
		"TCP over IPv4": offloadtest.TCP4(offloadtest.Random(size*packets, 1)),
		"TCP over IPv6": offloadtest.TCP4(offloadtest.Random(size*packets, 2)).ToV6(),
		"UDP over IPv4": offloadtest.TCP4(offloadtest.Random(size*packets, 3)).ToUDP(),
		"UDP over IPv6": offloadtest.TCP4(offloadtest.Random(size*packets, 4)).ToUDP().ToV6(),
	} {
		for _, every := range []int{1, 2, 5} {
			t.Run(fmt.Sprintf("%s, one in %d", name, every), func(t *testing.T) {
				underlay := loopbacks["IPv4"]
				a, b, r := throughRelay(t, underlay)
				seen := 0 // the relay's goroutine alone counts
				damage := func(ds [][]byte) [][]byte {
					for _, d := range ds {
						if d[0] == 0 {
							continue // a probe
						}
						if seen%every == 0 {
							d[len(d)-7] ^= 0x10
						}
						seen++
					}
					return ds
				}
				r.mangle.Store(&damage)
				r.introduce(t, underlay, a, b)
				f := super.Super(size)
				a.todo <- func(q *vxlan.Queue) { transmit(q, idB, f) }

				var got [][]byte
				for deadline := time.After(5 * time.Second); len(got) < packets; {
					select {
					case f := <-b.got:
						if f.Drop != drop.None {
							t.Fatalf("dropped: %v", f.Drop)
						}
						for _, p := range expand(t, f) {
							if isDamaged := checksumIsWrong(t, p); isDamaged && f.VNet != (frame.VNet{}) {
								t.Error("a damaged packet goes on with offload metadata")
							}
							got = append(got, bytes.Clone(p))
						}
					case <-deadline:
						t.Fatalf("%d of %d packets", len(got), packets)
					}
				}
				for i, sent := range super.Cut(size) {
					want := withMACs(sent.Bytes(false))
					if i%every == 0 {
						want[len(want)-7] ^= 0x10
					}
					if !bytes.Equal(got[i], want) {
						t.Fatalf("packet %d is not what came, or not in its place", i)
					}
					if checksumIsWrong(t, got[i]) != (i%every == 0) {
						t.Errorf("packet %d: damage and checksum disagree", i)
					}
				}
			})
		}
	}
}

func checksumIsWrong(t *testing.T, b []byte) bool {
	t.Helper()
	var h wire.Headers
	if r := wire.Parse(b, &h); r != drop.None {
		t.Fatal(r)
	}
	return offload.VerifyTransport(b, &h) == drop.BadChecksum
}

// Whatever a relay does to the order of a flow's packets, and whichever it loses or
// sends twice, they come out as they came in.
func TestOrderOnTheWayIsTheOrderOut(t *testing.T) {
	const size, packets = 500, 40
	super := offloadtest.TCP4(offloadtest.Random(size*packets, 1))
	underlay := loopbacks["IPv4"]
	a, b, r := throughRelay(t, underlay)
	relayed := make(chan []byte, 10*packets)
	shuffle := func(ds [][]byte) [][]byte {
		var out [][]byte
		for i, d := range ds {
			switch {
			case d[0] == 0: // a probe
			case i%7 == 3: // lost
				continue
			case i%5 == 1: // twice
				out = append(out, d)
			case i%11 == 4 && len(out) > 2: // early by two
				out = append(out[:len(out)-2], append([][]byte{d}, out[len(out)-2:]...)...)
				continue
			}
			out = append(out, d)
		}
		for _, d := range out {
			if d[0] != 0 {
				relayed <- bytes.Clone(d[vxlan.HeaderBytes:])
			}
		}
		return out
	}
	r.mangle.Store(&shuffle)
	r.introduce(t, underlay, a, b)
	f := super.Super(size)
	a.todo <- func(q *vxlan.Queue) { transmit(q, idB, f) }
	n := 0
	for deadline := time.After(5 * time.Second); n == 0 || len(relayed) > 0; {
		select {
		case f := <-b.got:
			for _, p := range expand(t, f) {
				if want := <-relayed; !bytes.Equal(p, want) {
					t.Fatalf("packet %d out is not packet %d in", n, n)
				}
				n++
			}
		case <-deadline:
			t.Fatalf("%d packets came out, %d more went in", n, len(relayed))
		}
	}
	if n < packets*8/10 {
		t.Errorf("only %d packets passed", n)
	}
}
