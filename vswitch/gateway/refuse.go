package gateway

import (
	"golang.org/x/time/rate"

	"vswitch/internal/wire"
)

// Refusals: what a pod gets instead of silence. Errors are not sent about errors
// or later fragments (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e) and no
// faster than a rate; the frame's drop reason is counted either way.

// Refusals a second, and in a burst: Linux's icmp_msgs_per_sec and twenty times
// its icmp_msgs_burst, since one gateway serves all pods of a node.
const (
	refusalsPerSec = 1000
	refusalsBurst  = 1000
)

// icmpKind is a type and code of ICMP or ICMPv6.
type icmpKind struct{ icmpType, code uint8 }

// unreachable is one meaning in both families (RFC 792, RFC 1812 section 5.2.7.1,
// RFC 4443 section 3.1).
type unreachable struct{ v4, v6 icmpKind }

var (
	adminProhibited = unreachable{icmpKind{3, 13}, icmpKind{1, 1}}
	portUnreachable = unreachable{icmpKind{3, 3}, icmpKind{1, 4}}
	hostUnreachable = unreachable{icmpKind{3, 1}, icmpKind{1, 3}}
)

func (u unreachable) of(v6 bool) icmpKind {
	if v6 {
		return u.v6
	}
	return u.v4
}

type refuser struct {
	limit  *rate.Limiter
	policy *policy
	write  func(ip []byte) bool
}

func newRefuser(p *policy, write func([]byte) bool) *refuser {
	return &refuser{limit: rate.NewLimiter(refusalsPerSec, refusalsBurst), policy: p, write: write}
}

// refuse answers frame b: TCP with a reset, the rest with an ICMP error.
func (r *refuser) refuse(b []byte, h *wire.Headers, u unreachable) {
	if h.Proto == wire.ProtoTCP && h.HasL4 && !h.Fragment {
		r.reset(b, h)
		return
	}
	router, ok := r.policy.router(h.V6)
	if ok {
		r.icmp(b, h, wire.AddrFrom(router), u.of(h.V6), 0)
	}
}

func (r *refuser) reset(b []byte, h *wire.Headers) {
	if h.TCPFlags&wire.RST != 0 || !r.limit.Allow() {
		return
	}
	var ip [wire.IPv6Bytes + wire.TCPBytes]byte
	r.write(ip[:wire.PutTCPReset(ip[:], b, h)])
}

// icmp answers with an error that comes from the address from.
func (r *refuser) icmp(b []byte, h *wire.Headers, from wire.Addr, k icmpKind, info uint32) {
	if h.IsICMPError() || h.LaterFrag || !r.limit.Allow() {
		return
	}
	var ip [wire.MaxICMPv6ErrorBytes]byte
	r.write(ip[:wire.PutICMPError(ip[:], b, h, from, k.icmpType, k.code, info)])
}
