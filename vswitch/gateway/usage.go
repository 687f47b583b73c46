package gateway

import (
	"sync"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// usage counts what each pod holds of the node, so that no pod can take more than
// its share: connections, those of them still being set up, and sessions.
type usage struct {
	connections, halfOpen, sessions int // caps, immutable

	mu   sync.Mutex
	pods map[wire.Addr]*podUse // guarded by mu; a pod that holds nothing has no entry
}

type podUse struct {
	pending     map[flow.Key]struct{} // connections being set up
	connections int                   // those included
	sessions    int
}

func newUsage(c *Config) *usage {
	return &usage{connections: c.ConnectionsPerPod, halfOpen: c.HalfOpenPerPod, sessions: c.SessionsPerPod,
		pods: make(map[wire.Addr]*podUse)}
}

// verdict is what a cap says of a new connection.
type verdict uint8

const (
	admitted     verdict = iota
	known                // it is being set up already: a repeated SYN
	overHalfOpen         // too many are being set up: it may work in a moment
	overCap              // too many are open
)

// check tells what reserve would say.
func (u *usage) check(k *flow.Key) verdict {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.judge(u.pods[k.Src], k)
}

func (u *usage) judge(p *podUse, k *flow.Key) verdict {
	if p == nil {
		return admitted
	}
	if _, ok := p.pending[*k]; ok {
		return known
	}
	switch {
	case len(p.pending) >= u.halfOpen:
		return overHalfOpen
	case p.connections >= u.connections:
		return overCap
	}
	return admitted
}

// reserve counts a connection that is about to be set up. After admitted, the
// caller calls established or release once, and after established release.
func (u *usage) reserve(k *flow.Key) verdict {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.pods[k.Src]
	if v := u.judge(p, k); v != admitted {
		return v
	}
	if p == nil {
		p = &podUse{pending: make(map[flow.Key]struct{})}
		u.pods[k.Src] = p
	}
	p.pending[*k] = struct{}{}
	p.connections++
	return admitted
}

// established ends the set-up of a connection, which stays open.
func (u *usage) established(k *flow.Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.pods[k.Src].pending, *k)
}

// release ends a connection, set up or not.
func (u *usage) release(k *flow.Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.pods[k.Src]
	delete(p.pending, *k)
	p.connections--
	u.forget(&k.Src, p)
}

// all counts the connections of all pods, those being set up included.
func (u *usage) all() (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.pods {
		n += p.connections
	}
	return n
}

// addSession counts a UDP or echo session; false: the pod has its share.
func (u *usage) addSession(pod *wire.Addr) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.pods[*pod]
	if p == nil {
		p = &podUse{pending: make(map[flow.Key]struct{})}
		u.pods[*pod] = p
	}
	if p.sessions >= u.sessions {
		return false
	}
	p.sessions++
	return true
}

// removeSession takes a session back.
func (u *usage) removeSession(pod *wire.Addr) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.pods[*pod]
	p.sessions--
	u.forget(pod, p)
}

// forget drops the entry of a pod that holds nothing. Callers hold mu.
func (u *usage) forget(pod *wire.Addr, p *podUse) {
	if p.connections == 0 && p.sessions == 0 {
		delete(u.pods, *pod)
	}
}
