package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch/flow"
)

// Chunk types (RFC 9260 section 3.2) and parameters (section 3.3.2.1, 3.3.3.1).
const (
	sctpData, sctpInit, sctpInitAck, sctpSack = 0, 1, 2, 3
	sctpShutdown, sctpShutdownAck             = 7, 8
	sctpCookieEcho, sctpCookieAck             = 10, 11
	sctpShutdownComplete                      = 14
	paramStateCookie, paramAddressTypes       = 7, 12
)

// chunk lays out a chunk or a parameter: both have a length that leaves the padding out.
func chunk(kind uint16, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// initValue is that of INIT and INIT ACK: tag, window, streams, first TSN, parameters.
func initValue(tag uint32, params ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 106496)
	b = binary.BigEndian.AppendUint16(b, 10)
	b = binary.BigEndian.AppendUint16(b, 65535)
	b = binary.BigEndian.AppendUint32(b, 4711)
	return append(b, slices.Concat(params...)...)
}

// An association, from INIT to SHUTDOWN COMPLETE, through a service that changes
// the port: both ends see what the other sent, with a checksum that is right over
// the ports they see (RFC 9260 section 6.8).
func TestSCTPAssociationThroughAService(t *testing.T) {
	const clientTag, serverTag = 0x1122_3344, 0x5566_7788
	cookie := pattern(173) // padded
	exchange := []struct {
		name       string
		fromServer bool
		tag        uint32
		chunks     []byte
	}{
		{"INIT", false, 0, chunk(sctpInit<<8, initValue(clientTag, chunk(paramAddressTypes, []byte{0, 5, 0, 6})))},
		{"INIT ACK", true, clientTag, chunk(sctpInitAck<<8, initValue(serverTag, chunk(paramStateCookie, cookie)))},
		{"COOKIE ECHO and DATA", false, serverTag, append(chunk(sctpCookieEcho<<8, cookie),
			chunk(sctpData<<8|3, append([]byte{0, 0, 0x12, 0x67, 0, 0, 0, 0, 0, 0, 0, 0}, "hello"...))...)},
		{"COOKIE ACK and SACK", true, clientTag, append(chunk(sctpCookieAck<<8, nil),
			chunk(sctpSack<<8, []byte{0, 0, 0x12, 0x67, 0, 1, 0xa0, 0, 0, 0, 0, 0})...)},
		{"DATA from the server", true, clientTag, chunk(sctpData<<8|3, append(make([]byte, 12), pattern(1200)...))},
		{"SHUTDOWN", false, serverTag, chunk(sctpShutdown<<8, []byte{0, 0, 0x12, 0x67})},
		{"SHUTDOWN ACK", true, clientTag, chunk(sctpShutdownAck<<8, nil)},
		{"SHUTDOWN COMPLETE", false, serverTag, chunk(sctpShutdownComplete<<8, nil)},
	}
	for _, tt := range []struct {
		name                  string
		vip, client, endpoint netip.Addr
		out                   string
	}{
		{"on this node", vip4, podA4, podB4, "b"},
		{"on this node, IPv6", vip6, podA6, podB6, "b"},
		{"to another node", vip4, podA4, remote4, "tunnel"},
		{"to another node, IPv6", vip6, podA6, remote6, "tunnel"},
		{"to itself", vip4, podA4, podA4, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.services.set(tt.vip, netip.AddrPortFrom(tt.endpoint, 8080))
			client := tt.client // as the server sees it
			if tt.endpoint == tt.client {
				client = router4
			}
			for _, step := range exchange {
				for _, damaged := range []bool{false, true} {
					p := fromA(wiretest.Packet{Dst: tt.vip, Proto: 132, SrcPort: 40000, DstPort: 80, Seq: step.tag, Payload: step.chunks})
					from, to := "a", tt.out
					src, dst := netip.AddrPortFrom(client, 40000), netip.AddrPortFrom(tt.endpoint, 8080)
					if step.fromServer {
						p = wiretest.Packet{Src: tt.endpoint, Dst: client, Proto: 132, SrcPort: 8080, DstPort: 40000, Seq: step.tag, Payload: step.chunks}
						switch from, to = tt.out, "a"; tt.out {
						case "a":
							p = fromA(p)
						case "b":
							p = fromB(p)
						}
						src, dst = netip.AddrPortFrom(tt.vip, 80), netip.AddrPortFrom(tt.client, 40000)
					}
					in := owned(p.Frame())
					in.Peer = peerIndex
					l4 := len(in.Bytes()) - 12 - len(step.chunks)
					if damaged {
						in.Bytes()[l4+12] ^= 0x10
					}
					want := bytes.Clone(in.Bytes()[l4+4 : l4+8])
					want = append(want, in.Bytes()[l4+12:]...)
					f := b.only(b.send(from, in), to)
					if wiretest.TransportIntact(f.Bytes()) == damaged {
						t.Errorf("%s: damaged %v, and the checksum says otherwise", step.name, damaged)
					}
					got := f.Bytes()[l4:]
					if !bytes.Equal(append(bytes.Clone(got[4:8]), got[12:]...), want) {
						t.Errorf("%s: the tag or the chunks have changed", step.name)
					}
					var h wire.Headers
					wire.Parse(f.Bytes(), &h)
					if g := tupleOf(&h); g != (tuple{src, dst}) {
						t.Errorf("%s: %v, want %v to %v", step.name, g, src, dst)
					}
				}
			}
			for info := range b.flows.All() {
				if info.State != flow.SCTPReplied || info.Frames != [2]uint64{8, 8} {
					t.Errorf("%+v", info)
				}
			}
		})
	}
}
