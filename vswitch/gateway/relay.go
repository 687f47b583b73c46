package gateway

import (
	"errors"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// relay carries UDP and echo between pods and the host, one datagram at a time
// and without the netstack, which only cuts and joins fragments.
//
// Many sessions share a host socket. What tells their answers apart is the
// remote address alone, so a socket has one session for each: two pods that ask
// the same resolver need two sockets, one pod that asks a thousand servers needs
// one. A pod's source port keeps to its socket while that is free (endpoint
// independent mapping, RFC 4787 section 4.1). When HostSockets are open and each
// is taken for the remote wanted, the session longest at rest gives way, if one
// is answered (recyclable); otherwise the datagram is dropped.
//
// The pod's side is found by the tuple in a map split over shards, a lock each;
// the host's side by socket and remote. A session is in both or in neither:
// both change under mu, which is taken once a session, not per datagram.
type relay struct {
	stack    *stack.Stack
	policy   *policy
	usage    *usage
	refuser  *refuser
	counters *counters
	tick     *atomic.Uint32
	log      *slog.Logger

	maxSockets int
	maxIngress int
	short      uint32 // idle limits in ticks
	stream     uint32

	seed   maphash.Seed
	shards [relayShards]relayShard

	mu      sync.Mutex
	sockets [socketKinds][]*hostSocket // guarded by mu: those opened for pods
	homes   map[podPort]*home          // guarded by mu
	next    int                        // guarded by mu: where the search for a socket begins
	closed  bool                       // guarded by mu
	readers sync.WaitGroup             // one for each socket, listeners included

	echoOnce sync.Once
}

const relayShards = 32

type relayShard struct {
	mu       sync.RWMutex
	sessions map[flow.Key]*session // guarded by mu
}

// podPort is a pod's source port or echo identifier.
type podPort struct {
	addr  wire.Addr
	port  uint16
	proto uint8
}

// home is the socket that a pod's source port keeps to.
type home struct {
	sock     *hostSocket
	sessions int
}

func newRelay(g *Gateway) *relay {
	r := &relay{
		stack: g.stack, policy: g.policy, usage: g.usage, refuser: g.refuser,
		counters: &g.counters, tick: &g.tick, log: g.cfg.Log,
		maxSockets: g.cfg.HostSockets, maxIngress: g.cfg.IngressConnections,
		short: ticksOf(g.cfg.UDPIdle), stream: ticksOf(g.cfg.UDPStreamIdle),
		seed: maphash.MakeSeed(), homes: make(map[podPort]*home),
	}
	for i := range r.shards {
		r.shards[i].sessions = make(map[flow.Key]*session)
	}
	return r
}

func (r *relay) shard(k *flow.Key) *relayShard {
	return &r.shards[maphash.Comparable(r.seed, *k)%relayShards]
}

func (r *relay) lookup(k *flow.Key) *session {
	sh := r.shard(k)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.sessions[*k]
}

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
	sock, err := openHostSocket(kind, netip.AddrPort{})
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

// read starts the goroutine of a socket; it ends when the socket is closed.
func (r *relay) read(sock *hostSocket) {
	r.readers.Go(func() {
		sock.serve(
			func(d *received) { r.fromHost(sock, d) },
			func(e *hostError) { r.report(sock, e) },
		)
	})
}

// insert makes s reachable from both sides. Callers hold mu.
func (r *relay) insert(s *session) drop.Reason {
	route, err := r.stack.FindRoute(nicWhole, tcpipAddr(&s.inside.Dst), tcpipAddr(&s.inside.Src), protocolOf(&s.inside.Dst), false)
	if err != nil {
		return drop.NoRoute
	}
	s.route = route
	s.hash = max(uint32(maphash.Comparable(r.seed, s.inside)), 1) // zero: none
	s.used.Store(r.tick.Load())
	sh := r.shard(&s.inside)
	sh.mu.Lock()
	sh.sessions[s.inside] = s
	sh.mu.Unlock()
	s.sock.mu.Lock()
	s.sock.peers[s.remote] = s
	s.sock.mu.Unlock()
	if s.port == nil {
		pp := podPort{s.inside.Src, s.inside.SrcPort, s.inside.Proto}
		if h := r.homes[pp]; h == nil {
			r.homes[pp] = &home{sock: s.sock, sessions: 1}
		} else {
			h.sessions++
		}
		r.counters.sessions.Add(1)
		r.counters.sessionsTotal.Add(1)
	}
	return drop.None
}

// remove is insert's opposite. Callers hold mu.
func (r *relay) remove(s *session) {
	if !s.released.CompareAndSwap(false, true) {
		return
	}
	sh := r.shard(&s.inside)
	sh.mu.Lock()
	delete(sh.sessions, s.inside)
	sh.mu.Unlock()
	s.sock.mu.Lock()
	delete(s.sock.peers, s.remote)
	s.sock.mu.Unlock()
	if s.port == nil {
		pp := podPort{s.inside.Src, s.inside.SrcPort, s.inside.Proto}
		if h := r.homes[pp]; h.sessions == 1 {
			delete(r.homes, pp)
		} else {
			h.sessions--
		}
		r.counters.sessions.Add(-1)
		r.usage.removeSession(&s.inside.Src)
	} else {
		r.counters.ingressOpen.Add(-1)
	}
	s.route.Release()
}

// fromHost takes what a host socket received to the pod.
func (r *relay) fromHost(sock *hostSocket, d *received) {
	s := sock.session(d.from)
	if s == nil && sock.port != nil {
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

// openFromHost makes the session for a client's first datagram to a node port.
func (r *relay) openFromHost(sock *hostSocket, client netip.AddrPort) *session {
	ep, reason := sock.port.pick(client.Addr().Is6())
	if reason != drop.None {
		r.counters.ingressRefused.Add(1)
		return nil
	}
	src, ok := r.policy.sourceFor(client, ep.Addr.Netip())
	if !ok {
		r.counters.ingressFailed.Add(1)
		return nil
	}
	s := &session{remote: client, sock: sock, port: sock.port, endpoint: ep.ID}
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
	// The client's address is promised, its port is not: it may use one port for
	// two node ports that lead to one endpoint.
	for range sourcePortTries {
		if s.inside.DstPort != 0 && r.lookup(&s.inside) == nil {
			if r.insert(s) != drop.None {
				return nil
			}
			r.counters.ingressOpen.Add(1)
			r.counters.ingressTotal.Add(1)
			return s
		}
		s.inside.DstPort = uint16(firstSourcePort + rand.IntN(lastSourcePort-firstSourcePort+1))
	}
	r.counters.ingressFailed.Add(1)
	return nil
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

// sweep ends sessions at rest and closes sockets that have none.
func (r *relay) sweep(tick uint32) {
	r.endIf(func(s *session) bool { return tick-s.used.Load() >= s.idleLimit(r.short, r.stream) })
	for _, sock := range r.takeUnused() {
		sock.close()
		r.counters.hostSockets.Add(-1)
	}
}

// endIf ends the sessions for which f holds.
func (r *relay) endIf(f func(*session) bool) {
	for i := range r.shards {
		sh := &r.shards[i]
		var end []*session
		sh.mu.RLock()
		for _, s := range sh.sessions {
			if f(s) {
				end = append(end, s)
			}
		}
		sh.mu.RUnlock()
		r.mu.Lock()
		for _, s := range end {
			r.remove(s)
		}
		r.mu.Unlock()
	}
}

// takeUnused withdraws the sockets without a session from use.
func (r *relay) takeUnused() []*hostSocket {
	r.mu.Lock()
	defer r.mu.Unlock()
	var unused []*hostSocket
	for kind, all := range r.sockets {
		kept := all[:0]
		for _, sock := range all {
			if sock.idle() {
				unused = append(unused, sock)
			} else {
				kept = append(kept, sock)
			}
		}
		clear(all[len(kept):])
		r.sockets[kind] = kept
	}
	return unused
}

// close ends all sessions, closes all sockets opened for pods and waits for the
// readers; listeners are closed before.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.endIf(func(*session) bool { return true })
	for _, sock := range r.takeUnused() {
		sock.close()
		r.counters.hostSockets.Add(-1)
	}
	r.readers.Wait()
}

// session is the one that talks to remote through this socket, or nil.
func (s *hostSocket) session(remote netip.AddrPort) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.peers[remote]
}

func (s *hostSocket) free(remote netip.AddrPort) bool { return s.session(remote) == nil }

func (s *hostSocket) idle() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.peers) == 0
}
