package vswitch_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/drop"
)

// sendAll injects frames one after the other and collects what goes out, by port.
func (b *bed) sendAll(from string, peer uint32, raws [][]byte) (sent map[string][][]byte, drops map[drop.Reason]uint64) {
	b.t.Helper()
	sent, drops = map[string][][]byte{}, map[drop.Reason]uint64{}
	for _, raw := range raws {
		f := owned(raw)
		f.Peer = peer
		o := b.send(from, f)
		for port, fs := range o.sent {
			for _, f := range fs {
				sent[port] = append(sent[port], slices.Clone(f.Bytes()))
			}
		}
		for r, n := range o.drops {
			drops[r] += n
		}
	}
	return sent, drops
}

// orders are the sequences that a datagram's fragments may come in (case 6, by
// the names Open vSwitch gives them).
var orders = map[string]func(fs [][]byte) [][]byte{
	"in order":     func(fs [][]byte) [][]byte { return fs },
	"out of order": func(fs [][]byte) [][]byte { fs = slices.Clone(fs); slices.Reverse(fs); return fs },
	"duplicate":    func(fs [][]byte) [][]byte { return slices.Concat(fs, fs[1:2], fs[:1]) },
	"duplicate before the first": func(fs [][]byte) [][]byte {
		return slices.Concat(fs[1:2], fs[1:2], fs)
	},
}

func pattern(n int) []byte {
	b := make([]byte, n)
	src := rand.New(rand.NewPCG(7, uint64(n)))
	for i := range b {
		b[i] = byte(src.Uint32())
	}
	return b
}

// Every fragment of a datagram goes where the first one's flow goes, and so do
// those of the answer: over {same node, tunnel} x {IPv4, IPv6}, straight, to a
// service and to the pod itself through a service.
func TestFragmentsFollowTheFirst(t *testing.T) {
	type path struct {
		name          string
		vip, endpoint netip.Addr
		port          string
		seenAs        netip.Addr // by the endpoint
		extensions    int
		proto         uint8
	}
	var paths []path
	for _, v6 := range []bool{false, true} {
		vip, local, remote, self, router := vip4, podB4, remote4, podA4, router4
		if v6 {
			vip, local, remote, self, router = vip6, podB6, remote6, podA6, router6
		}
		for _, p := range []path{
			{name: "straight, same node", endpoint: local, port: "b", seenAs: self},
			{name: "straight, tunnel", endpoint: remote, port: "tunnel", seenAs: self},
			{name: "service, same node", vip: vip, endpoint: local, port: "b", seenAs: self},
			{name: "service, tunnel", vip: vip, endpoint: remote, port: "tunnel", seenAs: self},
			{name: "service, the pod itself", vip: vip, endpoint: self, port: "a", seenAs: router},
		} {
			p.name = fmt.Sprintf("%s, IPv6 %v", p.name, v6)
			p.proto = wire.ProtoUDP
			paths = append(paths, p)
			if v6 {
				p.extensions = 3
				p.name += ", with extension headers"
				paths = append(paths, p)
			}
		}
	}
	for _, p := range paths {
		for order, arrange := range orders {
			t.Run(p.name+", "+order, func(t *testing.T) {
				b := newBed(t)
				dst, dstPort := p.endpoint, uint16(8080)
				if p.vip.IsValid() {
					dst, dstPort = p.vip, 80
					b.services.set(p.vip, netip.AddrPortFrom(p.endpoint, 8080))
				}
				for round, size := range []int{4000, 2801} { // the flow's first datagram, and another
					payload := pattern(size)
					question := fromA(wiretest.Packet{Dst: dst, Proto: p.proto, SrcPort: 40000, DstPort: dstPort, Payload: payload})
					fs := wiretest.Fragments(question.Frame(), uint32(100+round), 1384, p.extensions)
					sent, drops := b.sendAll("a", 0, arrange(fs))
					b.wantDatagram(sent, drops, p.port, p.seenAs, 40000, p.endpoint, 8080, payload)

					answer := wiretest.Packet{SrcMAC: macB, DstMAC: question.DstMAC, Src: p.endpoint, Dst: p.seenAs, Proto: p.proto, SrcPort: 8080, DstPort: 40000, Payload: payload}
					peer := uint32(0)
					switch p.port {
					case "tunnel":
						peer = peerIndex
					case "a":
						answer.SrcMAC = macA
					}
					fs = wiretest.Fragments(answer.Frame(), uint32(100+round), 1384, p.extensions)
					sent, drops = b.sendAll(p.port, peer, arrange(fs))
					b.wantDatagram(sent, drops, "a", dst, dstPort, question.Src, 40000, payload)
				}
			})
		}
	}
}

// wantDatagram checks that the fragments sent make one datagram with a right checksum.
func (b *bed) wantDatagram(sent map[string][][]byte, drops map[drop.Reason]uint64, port string,
	src netip.Addr, srcPort uint16, dst netip.Addr, dstPort uint16, payload []byte) {
	b.t.Helper()
	if len(sent) != 1 || len(sent[port]) == 0 || len(drops) != 0 {
		b.t.Fatalf("sent out of %v, drops %v; want all out of %s", keys(sent), drops, port)
	}
	whole, err := wiretest.Reassemble(sent[port])
	if err != nil {
		b.t.Fatal(err)
	}
	f := owned(whole)
	b.wantTuple(f, src, srcPort, dst, dstPort)
	h := b.headers(f)
	if string(whole[h.PayloadOff:h.End]) != string(payload) {
		b.t.Error("the payload changed")
	}
}

func keys(sent map[string][][]byte) map[string]int {
	n := map[string]int{}
	for k, v := range sent {
		n[k] = len(v)
	}
	return n
}

// Overlapping fragments are the receiver's to judge: the switch neither hides an
// overlap nor makes one, whichever comes first.
func TestOverlappingFragmentsArePassedAsTheyCame(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := newBed(t)
		dst := vip4
		if v6 {
			dst = vip6
		}
		raw := fromA(wiretest.Packet{Dst: dst, Proto: 17, SrcPort: 40000, DstPort: 80, Payload: pattern(2000)}).Frame()
		fs := wiretest.Fragments(raw, 5, 1000, 0)
		moved := slices.Clone(fs[1]) // overlaps the first by eight bytes, with other contents
		if v6 {
			moved[57] -= 8
		} else {
			moved[21]--
			moved[24], moved[25] = 0, 0
			sum := ^wiretest.Sum16(moved[14:34])
			moved[24], moved[25] = byte(sum>>8), byte(sum)
		}
		for _, order := range [][][]byte{{fs[0], moved}, {moved, fs[0]}} {
			sent, drops := b.sendAll("a", 0, order)
			if len(sent["b"]) != 2 || len(drops) != 0 {
				t.Fatalf("sent %v, drops %v", keys(sent), drops)
			}
			if _, err := wiretest.Reassemble(sent["b"]); err == nil {
				t.Error("the overlap is gone")
			}
		}
	}
}

// A pod speaks from one port to a service and straight to the endpoint behind it:
// one of the flows has another source port, and the fragments of both answers,
// which differ in nothing but the first one's port, find their ways.
func TestFragmentsOfFlowsThatLookAlike(t *testing.T) {
	b := newBed(t)
	ask := func(dst netip.Addr, port uint16, id uint32) wire.Headers {
		raw := fromA(wiretest.Packet{Dst: dst, Proto: 17, SrcPort: 40000, DstPort: port, Payload: pattern(3000)}).Frame()
		sent, drops := b.sendAll("a", 0, wiretest.Fragments(raw, id, 1384, 0))
		if len(sent["b"]) != 3 || len(drops) != 0 {
			t.Fatalf("sent %v, drops %v", keys(sent), drops)
		}
		whole, err := wiretest.Reassemble(sent["b"])
		if err != nil {
			t.Fatal(err)
		}
		return b.headers(owned(whole))
	}
	service, straight := ask(vip4, 80, 1), ask(podB4, 8080, 2)
	if service.SrcPort == straight.SrcPort {
		t.Fatal("both flows have one source port")
	}
	for i, q := range []struct {
		asked wire.Headers
		from  netip.Addr
		port  uint16
	}{{service, vip4, 80}, {straight, podB4, 8080}} {
		raw := fromB(wiretest.Packet{Dst: podA4, Proto: 17, SrcPort: 8080, DstPort: q.asked.SrcPort, Payload: pattern(3000)}).Frame()
		fs := wiretest.Fragments(raw, uint32(9+i), 1384, 0)
		sent, drops := b.sendAll("b", 0, [][]byte{fs[2], fs[0], fs[1]})
		b.wantDatagram(sent, drops, "a", q.from, q.port, podA4, 40000, pattern(3000))
	}
}

// A first fragment that is refused takes the others with it.
func TestFragmentsOfARefusedDatagram(t *testing.T) {
	b := newBed(t)
	raw := fromA(wiretest.Packet{Dst: vip4, Proto: 17, SrcPort: 40000, DstPort: 81, Payload: pattern(2000)}).Frame()
	fs := wiretest.Fragments(raw, 5, 1000, 0)
	h := b.headers(b.only(b.send("a", owned(fs[0])), "a", drop.NoService))
	if !h.IsICMPError() {
		t.Error("the first fragment was not answered with an ICMP error")
	}
	b.dropped(b.send("a", owned(fs[1])), drop.StrayFragment)
}

// SCTP's checksum can't be corrected in pieces, so where a port changes the
// fragments go no further; where only the address does, they do.
func TestSCTPFragments(t *testing.T) {
	b := newBed(t)
	payload := pattern(2000)
	datagram := func(srcPort uint16) [][]byte {
		raw := fromA(wiretest.Packet{Dst: vip4, Proto: 132, SrcPort: srcPort, DstPort: 80, Payload: payload}).Frame()
		return wiretest.Fragments(raw, uint32(srcPort), 1000, 0)
	}
	b.dropped(b.send("a", owned(datagram(40000)[0])), drop.StrayFragment)
	b.services.set(vip4, netip.AddrPortFrom(podB4, 80))
	sent, drops := b.sendAll("a", 0, datagram(40001))
	b.wantDatagram(sent, drops, "b", podA4, 40001, podB4, 80, payload)
}
