package gateway

import (
	"math/rand/v2"
	"net/netip"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// The relay from the host to pods: answers, and the clients of node ports.

// fromHost takes what a host socket received to the pod.
func (r *relay) fromHost(sock *hostSocket, d *received) {
	s := sock.session(d.from)
	if s == nil && sock.by != nil {
		s = r.openFromHost(sock, d.from)
	}
	if s == nil {
		r.counters.unsolicited.Add(1)
		return
	}
	s.used.Store(r.tick.Load())
	for rest := d.payload; ; {
		n := len(rest)
		if d.segmentBytes > 0 {
			n = min(n, d.segmentBytes)
		}
		s.toPod.Add(1)
		r.counters.datagramsIn.Add(1)
		s.deliver(rest[:n])
		if rest = rest[n:]; len(rest) == 0 {
			return
		}
	}
}

// sourcePortTries bounds the search for a free source port towards an endpoint.
const sourcePortTries = 16

// openFromHost makes the session for a client's first datagram to an entrance.
func (r *relay) openFromHost(sock *hostSocket, client netip.AddrPort) *session {
	ep, reason := sock.by.pick(client.Addr(), r.tick.Load())
	if reason != drop.None {
		r.counters.refused(reason)
		return nil
	}
	src, ok := r.policy.sourceFor(client, ep.Addr.Netip())
	if !ok {
		r.counters.ingressFailed.Add(1)
		return nil
	}
	s := &session{remote: client, sock: sock, by: sock.by, endpoint: ep.ID}
	s.inside = flow.Key{Src: ep.Addr, SrcPort: ep.Port, Dst: wire.AddrFrom(src.Addr()), DstPort: src.Port(), Proto: wire.ProtoUDP}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	if r.counters.ingressOpen.Load() >= int64(r.maxIngress) {
		r.counters.ingressRefused.Add(1)
		return nil
	}
	if !r.insertFromHost(s) {
		r.counters.ingressFailed.Add(1)
		return nil
	}
	r.counters.ingressTotal.Add(1)
	return s
}

// insertFromHost inserts a client's session. The client's address is promised, its
// port is not: it may use one port for two node ports that lead to one endpoint.
// Callers hold mu.
func (r *relay) insertFromHost(s *session) bool {
	for range sourcePortTries {
		if s.inside.DstPort != 0 && r.lookup(&s.inside) == nil {
			if r.insert(s) != drop.None {
				return false
			}
			r.counters.ingressOpen.Add(1)
			return true
		}
		s.inside.DstPort = anySourcePort()
	}
	return false
}

// sourceTaken deals with the ICMP error by which a switch says that a client's
// source port is taken towards an endpoint (drop.SourceTaken): its session goes on
// from another port, beginning with the client's next datagram. It is false for
// any other error. A pod could send it about a session of its own, to no gain.
func (r *relay) sourceTaken(b []byte, h *wire.Headers) bool {
	if k := adminProhibited.of(h.V6); h.ICMPType != k.icmpType || b[h.L4Off+1] != k.code {
		return false
	}
	var q wire.Headers
	if wire.ParseQuoted(b[h.PayloadOff:h.End], &q) != drop.None || q.Proto != wire.ProtoUDP || !q.HasL4 {
		return false
	}
	key := flow.KeyOf(&q).Reverse()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.lookup(&key)
	if s == nil || s.by == nil || r.closed {
		return false
	}
	r.remove(s)
	next := &session{remote: s.remote, sock: s.sock, by: s.by, endpoint: s.endpoint, inside: s.inside}
	next.inside.DstPort = anySourcePort()
	if !r.insertFromHost(next) {
		r.counters.ingressFailed.Add(1)
	}
	return true
}

func anySourcePort() uint16 {
	return uint16(firstSourcePort + rand.IntN(lastSourcePort-firstSourcePort+1))
}

// The range of substitute source ports (RFC 6335 section 6: dynamic ports).
const (
	firstSourcePort = 49152
	lastSourcePort  = 65535
)

// report tells a pod of an ICMP error that its datagram met on the host's side,
// in the same words. The families' types pass unchanged: v4 errors concern v4
// sessions. An error of the peer itself comes from the address the pod knows.
func (r *relay) report(sock *hostSocket, e *hostError) {
	to := e.to
	if sock.kind.echo() {
		to = netip.AddrPortFrom(to.Addr(), 0)
	}
	s := sock.session(to)
	if s == nil {
		return
	}
	from := s.inside.Dst
	if e.from != s.remote.Addr() {
		if contains(deniedAlways, e.from) || !e.from.IsValid() {
			router, ok := r.policy.router(e.to.Addr().Is6())
			if !ok {
				return
			}
			e.from = router
		}
		from = wire.AddrFrom(e.from)
	}
	b := s.quote(e.payload)
	var h wire.Headers
	if wire.Parse(b, &h) == drop.None {
		r.refuser.icmp(b, &h, from, icmpKind{e.icmpType, e.code}, e.info)
	}
}
