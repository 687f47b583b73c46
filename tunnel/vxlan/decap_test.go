//go:build linux

package vxlan_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"vswitch/internal/offload/offloadtest"
	"vswitch/tunnel/udp"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// outside is a socket that sends what it likes to a tunnel.
type outside struct {
	t    *testing.T
	conn *udp.Conn
	to   *udp.Dest
}

func newOutside(t *testing.T, underlay netip.Addr, tun *vxlan.Tunnel) *outside {
	t.Helper()
	c, err := udp.Listen(udp.Config{Local: netip.AddrPortFrom(underlay, 0), Offload: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &outside{t, c, udp.NewDest(netip.AddrPortFrom(underlay, tun.Ports()[0]))}
}

func (o *outside) send(tos uint8, datagrams ...[]byte) {
	o.t.Helper()
	var lost drop.Reason
	for _, d := range datagrams {
		o.conn.Stage(o.to, tos, d, nil, &lost)
	}
	o.conn.Flush()
	if lost != drop.None {
		o.t.Fatalf("lost: %v", lost)
	}
}

// receive waits for one message from the tunnel.
func (o *outside) receive() *udp.Message {
	o.t.Helper()
	waitReadable(o.t, o.conn.FD())
	n, err := o.conn.Receive()
	if err != nil || n != 1 {
		o.t.Fatalf("%d messages (%v), want one", n, err)
	}
	return o.conn.Message(0)
}

// encapsulated is an inner frame with a VXLAN header.
func encapsulated(vni uint32, inner []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x08000000)
	b = binary.BigEndian.AppendUint32(b, vni<<8)
	return append(b, inner...)
}

// innerFrame is a good frame from A's VTEP to B's.
func innerFrame() []byte { return withMACs(offloadtest.TCP4([]byte("payload")).Bytes(false)) }

// Case 25: each is dropped with its own reason, in a train and alone, and
// nothing but what is good gets through.
func TestDecapsulationDrops(t *testing.T) {
	edit := func(change func(inner []byte)) []byte {
		b := innerFrame()
		change(b)
		return encapsulated(1, b)
	}
	tests := []struct {
		name     string
		datagram []byte
		want     drop.Reason
	}{
		{"a good frame", encapsulated(1, innerFrame()), drop.None},
		{"an empty datagram", nil, drop.NotVXLAN},
		{"seven bytes", encapsulated(1, nil)[:7], drop.NotVXLAN},
		{"flag I clear", append([]byte{0}, encapsulated(1, innerFrame())[1:]...), drop.NotVXLAN},
		{"flag I clear and all others set", append([]byte{0xf7}, encapsulated(1, innerFrame())[1:]...), drop.NotVXLAN},
		{"reserved bits set are ignored", func() []byte {
			b := encapsulated(1, innerFrame())
			b[0], b[1], b[2], b[3], b[7] = 0xff, 0xff, 0xff, 0xff, 0xff
			return b
		}(), drop.None},
		{"another VNI", encapsulated(2, innerFrame()), drop.UnknownVNI},
		{"our VNI in the wrong bytes", encapsulated(1<<16, innerFrame()), drop.UnknownVNI},
		{"nothing inside", encapsulated(1, nil), drop.BadInner},
		{"inner runt", encapsulated(1, innerFrame()[:13]), drop.BadInner},
		{"inner source multicast", edit(func(b []byte) { b[6] |= 1 }), drop.BadInner},
		{"inner source broadcast", edit(func(b []byte) { copy(b[6:], frame.Broadcast[:]) }), drop.BadInner},
		{"inner source zero", edit(func(b []byte) { copy(b[6:12], make([]byte, 6)) }), drop.BadInner},
		{"inner source is our own MAC", edit(func(b []byte) { copy(b[6:], macB[:]) }), drop.BadInner},
		{"inner destination broadcast", edit(func(b []byte) { copy(b, frame.Broadcast[:]) }), drop.Multicast},
		{"inner destination is another's MAC", edit(func(b []byte) { b[5]++ }), drop.BadInner},
	}
	forEachFamily(t, func(t *testing.T, underlay netip.Addr) {
		b := open(t, vxlan.Config{Underlays: []netip.Addr{underlay}, MAC: macB, Offload: true})
		member, stranger := newOutside(t, underlay, b), newOutside(t, underlay, b)
		setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: []uint16{member.conn.Local().Port()}, MAC: macA})

		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				member.send(0, tt.datagram)
				got := receive(t, b.Queue(0), 1)
				if len(got) != 1 || got[0].Drop != tt.want || got[0].Peer != idA {
					t.Errorf("%d frames, %v from member %d; want one, %v from %d", len(got), got[0].Drop, got[0].Peer, tt.want, idA)
				}
				if tt.want == drop.None && got[0].Len() != len(innerFrame()) {
					t.Errorf("%d bytes, want %d", got[0].Len(), len(innerFrame()))
				}
				want := tt.want
				if want != drop.NotVXLAN {
					want = drop.NotMember
				}
				stranger.send(0, tt.datagram)
				if got := receive(t, b.Queue(0), 1); got[0].Drop != want || got[0].Peer != 0 {
					t.Errorf("from a stranger: %v, member %d; want %v, none", got[0].Drop, got[0].Peer, want)
				}
			})
		}
		t.Run("each packet of a train is judged", func(t *testing.T) {
			bad := encapsulated(2, innerFrame())
			good := encapsulated(1, withMACs(offloadtest.TCP4([]byte("payload")).ToUDP().Bytes(false)))
			good = append(good, make([]byte, len(bad)-len(good))...) // equal sizes make one train
			member.send(0, good, bad, good, bad)
			got := receive(t, b.Queue(0), 4)
			for i, want := range []drop.Reason{drop.None, drop.UnknownVNI, drop.None, drop.UnknownVNI} {
				if got[i].Drop != want {
					t.Errorf("packet %d: %v, want %v", i, got[i].Drop, want)
				}
			}
		})
	})
}

// RFC 6040 section 4.2, Figure 4, and its entry rule, section 4.1.
func TestECNCrosses(t *testing.T) {
	const notECT, ect1, ect0, ce, lost = 0, 1, 2, 3, -1
	table := []struct {
		inner uint8
		want  [4]int // by outer mark
	}{
		{notECT, [4]int{notECT: notECT, ect1: notECT, ect0: notECT, ce: lost}},
		{ect0, [4]int{notECT: ect0, ect1: ect1, ect0: ect0, ce: ce}},
		{ect1, [4]int{notECT: ect1, ect1: ect1, ect0: ect1, ce: ce}},
		{ce, [4]int{notECT: ce, ect1: ce, ect0: ce, ce: ce}},
	}
	const dscp = 0xb8 // the inner DSCP is nobody's business but the pods'
	forEachFamily(t, func(t *testing.T, underlay netip.Addr) {
		b := open(t, vxlan.Config{Underlays: []netip.Addr{underlay}, MAC: macB, Offload: true})
		o := newOutside(t, underlay, b)
		setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: []uint16{o.conn.Local().Port()}, MAC: macA})
		for _, row := range table {
			for outer, want := range row.want {
				for _, v6 := range []bool{false, true} {
					p := offloadtest.TCP4([]byte("x"))
					if v6 {
						p.ToV6()
					}
					p.TOS = dscp | row.inner
					o.send(uint8(outer), encapsulated(1, withMACs(p.Bytes(false))))
					got := receive(t, b.Queue(0), 1)[0]
					if want == lost {
						if got.Drop != drop.Congested {
							t.Errorf("inner %d outer %d: %v, want %v", row.inner, outer, got.Drop, drop.Congested)
						}
						continue
					}
					p.TOS = dscp | uint8(want)
					if got.Drop != drop.None || string(got.Bytes()) != string(withMACs(p.Bytes(false))) {
						t.Errorf("inner %d outer %d IPv6 %v: %v, or not the packet marked %d", row.inner, outer, v6, got.Drop, want)
					}
				}
			}
		}
		t.Run("entry copies the inner mark and hides the DSCP", func(t *testing.T) {
			for mark := range uint8(4) {
				for _, v6 := range []bool{false, true} {
					p := offloadtest.TCP4([]byte("x"))
					if v6 {
						p.ToV6()
					}
					p.TOS = dscp | mark
					transmit(b.Queue(0), idA, plain(p))
					if got := o.receive().TOS; got != mark {
						t.Errorf("mark %d: outer TOS %#x", mark, got)
					}
				}
			}
		})
	})
}

func TestMembership(t *testing.T) {
	underlay := loopbacks["IPv4"]
	b := open(t, vxlan.Config{Underlays: []netip.Addr{underlay}, MAC: macB})
	one, two := newOutside(t, underlay, b), newOutside(t, underlay, b)
	peer := func(id uint32, o *outside) vxlan.Peer {
		return vxlan.Peer{ID: id, Node: "n", Underlay: underlay, Ports: []uint16{o.conn.Local().Port()}, MAC: macA}
	}
	from := func(o *outside) (uint32, drop.Reason) {
		o.send(0, encapsulated(1, innerFrame()))
		f := receive(t, b.Queue(0), 1)[0]
		return f.Peer, f.Drop
	}
	expect := func(what string, o *outside, wantID uint32, want drop.Reason) {
		t.Helper()
		if id, r := from(o); id != wantID || r != want {
			t.Errorf("%s: member %d, %v; want %d, %v", what, id, r, wantID, want)
		}
	}

	setPeer(t, b, peer(1, one))
	setPeer(t, b, peer(2, two))
	expect("two members behind one address, the first", one, 1, drop.None)
	expect("two members behind one address, the second", two, 2, drop.None)

	if err := b.SetPeer(peer(3, two)); !errors.Is(err, vxlan.ErrPeerTaken) {
		t.Errorf("a third member with the second's port: %v, want %v", err, vxlan.ErrPeerTaken)
	}
	expect("after the refusal", two, 2, drop.None)

	if !b.RemovePeer(2) || b.RemovePeer(2) {
		t.Error("RemovePeer reports the wrong thing")
	}
	expect("removed", two, 0, drop.NotMember)

	b.Together(func() {
		setPeer(t, b, peer(2, two))
		if err := b.SetPeer(peer(3, two)); !errors.Is(err, vxlan.ErrPeerTaken) {
			t.Errorf("one more with the port of a member not yet published: %v, want %v", err, vxlan.ErrPeerTaken)
		}
		if !b.RemovePeer(1) || b.RemovePeer(1) {
			t.Error("RemovePeer reports the wrong thing of what is not yet published")
		}
		expect("before changes made together are published", one, 1, drop.None)
	})
	expect("after they are", two, 2, drop.None)
	expect("after they are, the removed", one, 0, drop.NotMember)
	b.Together(func() {
		b.RemovePeer(2)
		setPeer(t, b, peer(1, one))
	})
	expect("the one that stays", one, 1, drop.None)

	flannel := vxlan.Peer{ID: 4, Node: "f", Underlay: underlay, AnyPort: true, MAC: macA}
	setPeer(t, b, flannel)
	expect("any port of a flannel node", two, 4, drop.None)
	expect("an exact port goes first", one, 1, drop.None)
	flannel.ID = 5
	if err := b.SetPeer(flannel); !errors.Is(err, vxlan.ErrPeerTaken) {
		t.Errorf("a second flannel node at one address: %v, want %v", err, vxlan.ErrPeerTaken)
	}

	moved := peer(4, two) // the node becomes a vswitch node
	setPeer(t, b, moved)
	expect("replaced under its ID", two, 4, drop.None)
	b.RemovePeer(1)
	expect("no longer any port", one, 0, drop.NotMember)
}

// What the network says of the way to a member while a change of that member waits to be
// published is not lost by it: the report would not be believed a second time.
func TestAPathLearntDuringChangesMadeTogether(t *testing.T) {
	underlay := loopbacks["IPv4"]
	tun := open(t, vxlan.Config{Underlays: []netip.Addr{underlay}, UnderlayMTUBytes: 1500, MAC: macB})
	peer := vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: []uint16{9}, MAC: macA}
	setPeer(t, tun, peer)
	tun.Together(func() {
		setPeer(t, tun, peer)
		tun.Learn(underlay, 1400)
	})
	if got, want := tun.PathMTU(idA), 1400-vxlan.OverheadV4Bytes; got != want {
		t.Errorf("path MTU %d, want %d", got, want)
	}
}

func TestSetPeerNamesWhatIsWrong(t *testing.T) {
	b := open(t, vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macB})
	good := vxlan.Peer{ID: 1, Node: "a", Underlay: loopbacks["IPv4"], Ports: []uint16{1}, MAC: macA}
	tests := []struct {
		name   string
		change func(*vxlan.Peer)
	}{
		{"no ID", func(p *vxlan.Peer) { p.ID = 0 }},
		{"no address", func(p *vxlan.Peer) { p.Underlay = netip.Addr{} }},
		{"a multicast address", func(p *vxlan.Peer) { p.Underlay = netip.MustParseAddr("224.0.0.1") }},
		{"an address of a family that we have not", func(p *vxlan.Peer) { p.Underlay = loopbacks["IPv6"] }},
		{"port zero", func(p *vxlan.Peer) { p.Ports = []uint16{1, 0} }},
		{"a VNI of 25 bits", func(p *vxlan.Peer) { p.VNI = 1 << 24 }},
		{"an ingress VNI of 25 bits", func(p *vxlan.Peer) { p.IngressVNI = 1 << 24 }},
		{"an ingress VNI that is its VNI", func(p *vxlan.Peer) { p.IngressVNI = 1 }},
		{"no MAC", func(p *vxlan.Peer) { p.MAC = frame.MAC{} }},
		{"a multicast MAC", func(p *vxlan.Peer) { p.MAC = frame.Broadcast }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := good
			tt.change(&p)
			if err := b.SetPeer(p); err == nil {
				t.Error("accepted")
			}
		})
	}
}
