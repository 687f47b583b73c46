package gateway

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// The relay from pods to the host.

// datagram is what a pod sent.
type datagram struct {
	key          flow.Key
	ttl          uint8
	segmentBytes uint16 // payload is several datagrams of this size (USO); zero: one
	payload      []byte // UDP: behind the header; echo: the ICMP message
}

// fromPod sends a pod's datagram on. The caller answers for a reason returned.
func (r *relay) fromPod(d *datagram) drop.Reason {
	s := r.lookup(&d.key)
	if s == nil {
		var reason drop.Reason
		if s, reason = r.openFromPod(&d.key); s == nil {
			return reason
		}
	}
	s.used.Store(r.tick.Load())
	s.fromPod.Add(1)
	switch err := s.sock.send(d.payload, s.remote, d.ttl, d.segmentBytes); {
	case err == nil:
		r.counters.datagramsOut.Add(1)
		return drop.None
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return drop.NoRoute
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return drop.EgressDenied // the host's own filter
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		return drop.EgressFull
	}
	return drop.EgressRefused
}

// openFromPod makes the session for a pod's first datagram to somewhere.
func (r *relay) openFromPod(k *flow.Key) (*session, drop.Reason) {
	to, ok := r.policy.egress(k.Dst.Netip())
	if !ok {
		r.counters.egressForbidden.Add(1)
		return nil, drop.EgressDenied
	}
	s := &session{inside: *k, remote: netip.AddrPortFrom(to, k.DstPort)}
	if s.echo() {
		s.remote = netip.AddrPortFrom(to, 0)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, drop.EgressDown
	}
	if s := r.lookup(k); s != nil { // another worker was faster
		return s, drop.None
	}
	if !r.usage.addSession(&k.Src) {
		r.counters.egressCapped.Add(1)
		return nil, drop.ConnectionCap
	}
	reason := r.findSocket(s)
	if reason == drop.None {
		reason = r.insert(s)
	}
	if reason != drop.None {
		r.usage.removeSession(&k.Src)
		return nil, reason
	}
	return s, drop.None
}

// findSocket chooses s.sock. Callers hold mu.
func (r *relay) findSocket(s *session) drop.Reason {
	kind := kindOf(s.echo(), s.remote.Addr().Is6())
	pp := podPort{s.inside.Src, s.inside.SrcPort, s.inside.Proto}
	if h := r.homes[pp]; h != nil && h.sock.free(s.remote) {
		s.sock = h.sock
		return drop.None
	}
	all := r.sockets[kind]
	for i := range all {
		sock := all[(r.next+i)%len(all)]
		if sock.free(s.remote) {
			r.next = (r.next + i) % len(all)
			s.sock = sock
			return drop.None
		}
	}
	if int(r.counters.hostSockets.Load()) < r.maxSockets {
		sock, reason := r.openSocket(kind)
		s.sock = sock
		return reason
	}
	return r.recycle(s, all)
}

// recycle ends the session longest at rest among those that hold the remote s
// wants, and gives s its socket. Callers hold mu.
func (r *relay) recycle(s *session, all []*hostSocket) drop.Reason {
	tick := r.tick.Load()
	var oldest *session
	for _, sock := range all {
		other := sock.session(s.remote)
		if other != nil && other.recyclable(tick) && (oldest == nil || tick-other.used.Load() > tick-oldest.used.Load()) {
			oldest = other
		}
	}
	if oldest == nil {
		return drop.EgressFull
	}
	r.counters.sessionsRecycled.Add(1)
	r.remove(oldest)
	s.sock = oldest.sock
	return drop.None
}

func (r *relay) openSocket(kind socketKind) (*hostSocket, drop.Reason) {
	sock, err := openHostSocket(kind)
	if err != nil {
		if kind.echo() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
			r.echoOnce.Do(func() {
				r.log.Warn("pods can't ping outside: the host allows no ping sockets (sysctl net.ipv4.ping_group_range); they are told so", "err", err)
			})
			r.counters.echoForbidden.Add(1)
			return nil, drop.EchoForbidden
		}
		r.log.Warn("no host socket for a pod's datagram", "err", err)
		return nil, drop.EgressFull
	}
	r.sockets[kind] = append(r.sockets[kind], sock)
	r.counters.hostSockets.Add(1)
	r.read(sock)
	return sock, drop.None
}
