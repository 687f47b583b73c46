package gateway

import (
	"math/rand/v2"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// Provoke asks a pod for a sign of a TCP connection that a gateway of an earlier
// process had with it: k is the tuple of that gateway's segments. If this one doesn't
// know the connection the pod's answer is met with a reset that carries exactly the sequence
// number it expects, and its program learns at once what it would else learn when it
// next sends, if ever. A connection that this gateway has is not harmed.
//
// The sign is asked for by two segments that carry an acknowledgment and nothing
// else, half the sequence space apart: one of them lies outside any
// window, and is answered with an acknowledgment of what the pod has
// (RFC 9293 section 3.10.7.4; RFC 5961 section 4 for the reset).
//
// False: there is no room in the ring for now.
func (g *Gateway) Provoke(k *flow.Key) bool {
	seq := rand.Uint32()
	var ip [wire.IPv6Bytes + wire.TCPBytes]byte
	for _, s := range []uint32{seq, seq + 1<<31} {
		n := wire.PutTCPAck(ip[:], &k.Src, k.SrcPort, &k.Dst, k.DstPort, s, rand.Uint32())
		if !g.link.WriteIP(ip[:n]) {
			return false
		}
	}
	return true
}
