package gateway

import (
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

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
	if s.by == nil {
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
	if s.by == nil {
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
