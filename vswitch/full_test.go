package vswitch_test

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// fill opens n direct flows from pod a.
func (b *bed) fill(n int) {
	b.t.Helper()
	for i := range n {
		p := fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: uint16(i), DstPort: uint16(1 + i>>16)})
		b.only(b.send("a", owned(p.Frame())), "b")
	}
}

// When there is no room, what needs no entry goes on without one, both ways, and
// what does is refused by name.
func TestAFullTablePassesDirectFlows(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  flow.Config
		want drop.Reason
	}{
		{"the table is full", flow.Config{Connections: 32, PerOwner: 1000}, drop.FlowTableFull},
		{"the pod has its share", flow.Config{Connections: 1000, PerOwner: 32}, drop.PodFlowCap},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBedWith(t, vswitch.Config{}, tt.cfg)
			b.fill(32)
			for _, dst := range []netip.Addr{podB4, podB6, remote4, remote6, outside4} {
				for _, proto := range []uint8{6, 17, 132} {
					out := map[netip.Addr]string{podB4: "b", podB6: "b", remote4: "tunnel", remote6: "tunnel", outside4: "gateway"}[dst]
					p := fromA(wiretest.Packet{Dst: dst, Proto: proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 7777})
					for range 2 {
						b.wantTuple(b.only(b.send("a", owned(p.Frame())), out), p.Src, 40000, dst, 7777)
					}
				}
			}
			answer := fromB(wiretest.Packet{Dst: podA4, Proto: 6, Flags: wire.SYN | wire.ACK, SrcPort: 7777, DstPort: 40000})
			b.wantTuple(b.only(b.send("b", owned(answer.Frame())), "a"), podB4, 7777, podA4, 40000)
			for _, vip := range []netip.Addr{vip4, vip6} {
				p := fromA(wiretest.Packet{Dst: vip, Proto: 17, SrcPort: 40000, DstPort: 80})
				b.dropped(b.send("a", owned(p.Frame())), tt.want)
			}
			if got := b.flows.Len(); got > 33 { // b's answer may have found room of b's own
				t.Errorf("%d flows", got)
			}
		})
	}
}

// One pod's share is its own: with it used up, another's connections to services
// are as if nothing had been. (Case 24: random headers at line rate.)
func TestAPodThatFloodsHasItsShareOfTheTable(t *testing.T) {
	const share = 500
	b := newBedWith(t, vswitch.Config{}, flow.Config{Connections: 8 * share, PerOwner: share})
	b.services.set(vip4, netip.AddrPortFrom(remote4, 8080))
	passed, capped := 0, 0
	for i := range 8 * share {
		p := fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: uint16(i * 7919), DstPort: uint16(i * 104729)})
		if i%2 == 1 {
			p.Dst, p.DstPort = vip4, 80
		}
		o := b.send("a", owned(p.Frame()))
		passed += len(o.sent["b"]) + len(o.sent["tunnel"])
		capped += int(o.drops[drop.PodFlowCap])
	}
	if b.flows.Len() != share || passed+capped != 8*share || capped != 4*share-share/2 {
		t.Errorf("%d flows, %d frames passed and %d capped; want %d, %d and %d", b.flows.Len(), passed, capped, share, 4*share+share/2, 4*share-share/2)
	}
	for port := range uint16(share) {
		p := fromB(wiretest.Packet{Dst: vip4, Proto: 6, Flags: wire.SYN, SrcPort: 1000 + port, DstPort: 80})
		b.wantTuple(b.only(b.send("b", owned(p.Frame())), "tunnel"), podB4, 1000+port, remote4, 8080)
	}
}

// What can't be parsed, or not judged by its ports, leaves nothing behind that
// changes the verdict on the next packet with the same addresses and ports (case 23).
func TestMalformedPacketsDoNotPoisonTheTable(t *testing.T) {
	for _, vip := range []netip.Addr{vip4, vip6} {
		for _, proto := range []uint8{6, 17, 132} {
			good := fromA(wiretest.Packet{Dst: vip, Proto: proto, Flags: wire.SYN, SrcPort: 40000, DstPort: 80, Payload: pattern(64)})
			for name, poison := range poisons(good) {
				t.Run(name, func(t *testing.T) {
					b := newBed(t)
					for _, raw := range poison {
						for port, fs := range b.send("a", owned(raw)).sent {
							for _, f := range fs {
								// It may be forwarded, by the same verdict, or refused to its sender.
								var h wire.Headers
								if r := wire.Parse(f.Bytes(), &h); r != drop.None || port != "b" && port != "a" || port == "b" && isVIP(h.Dst.Netip()) {
									t.Errorf("left by %s: %v, %+v", port, r, h)
								}
							}
						}
					}
					endpoint := podB4
					if vip.Is6() {
						endpoint = podB6
					}
					for range 2 {
						b.wantTuple(b.only(b.send("a", owned(good.Frame())), "b"), good.Src, 40000, endpoint, 8080)
					}
					answer := fromB(wiretest.Packet{Dst: good.Src, Proto: proto, Flags: wire.SYN | wire.ACK, SrcPort: 8080, DstPort: 40000})
					b.wantTuple(b.only(b.send("b", owned(answer.Frame())), "a"), vip, 80, good.Src, 40000)
					if n := b.flows.Len(); n != 1 {
						t.Errorf("%d flows, want the one", n)
					}
				})
			}
		}
	}
}

// poisons are packets much like good, but for something that is wrong with them.
func poisons(good wiretest.Packet) map[string][][]byte {
	raw := func(change func(b []byte)) [][]byte {
		b := good.Frame()
		change(b)
		return [][]byte{b}
	}
	ip, l4 := 14, 34
	protoAt, lengthAt := 23, 16
	if good.Dst.Is6() {
		l4, protoAt, lengthAt = 54, 20, 18
	}
	fixIP := func(b []byte) {
		if !good.Dst.Is6() {
			b[ip+10], b[ip+11] = 0, 0
			sum := ^wiretest.Sum16(b[ip:l4])
			b[ip+10], b[ip+11] = byte(sum>>8), byte(sum)
		}
	}
	fragment := good
	fragment.Payload = pattern(1600)
	pieces := wiretest.Fragments(fragment.Frame(), 77, 800, 0)
	out := map[string][][]byte{
		"protocol 0":               raw(func(b []byte) { b[protoAt] = 0; fixIP(b) }),
		"protocol 255":             raw(func(b []byte) { b[protoAt] = 255; fixIP(b) }),
		"padding behind it":        {append(good.Frame(), pattern(20)...)},
		"cut in the ports":         raw(func(b []byte) { b[lengthAt], b[lengthAt+1] = 0, 22; fixIP(b) }),
		"length of zero":           raw(func(b []byte) { b[lengthAt], b[lengthAt+1] = 0, 0; fixIP(b) }),
		"longer than the frame":    raw(func(b []byte) { b[lengthAt] = 0xf0; fixIP(b) }),
		"later fragments only":     pieces[1:],
		"a frame of headers only":  {good.Frame()[:l4]},
		"a first fragment, no end": pieces[:1],
	}
	if good.Proto == 132 { // in fragments it can't be rewritten, and its flow stands all the same
		delete(out, "a first fragment, no end")
	}
	if !good.Dst.Is6() {
		out["a wrong header checksum"] = raw(func(b []byte) { b[ip+10] ^= 1 })
		out["a header of 16 bytes"] = raw(func(b []byte) { b[ip] = 0x44; fixIP(b) })
		out["a header beyond its end"] = raw(func(b []byte) { b[ip] = 0x4f; b[lengthAt], b[lengthAt+1] = 0, 24 })
		out["options"] = [][]byte{withOptions(good)}
	}
	return out
}

// withOptions is an IPv4 packet with four bytes of no operation (RFC 791 section 3.1).
func withOptions(p wiretest.Packet) []byte {
	b := p.Frame()
	b = append(b[:34:34], append([]byte{1, 1, 1, 1}, b[34:]...)...)
	b[14] = 0x46
	n := len(b) - 14
	b[16], b[17] = byte(n>>8), byte(n)
	b[24], b[25] = 0, 0
	sum := ^wiretest.Sum16(b[14:38])
	b[24], b[25] = byte(sum>>8), byte(sum)
	return b
}
