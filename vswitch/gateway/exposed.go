package gateway

import (
	"sync"

	"vswitch/internal/wire"
)

// exposed are the ports of this node's pods that clients outside reach by way of
// other nodes: those of services that have an outside address and whose policy
// for it is Cluster. The switch lets in nothing else that comes with a client's
// address through the tunnel. An endpoint that takes no new flows is among them
// while it is listed: nodes learn of a change at different moments. Endpoints of
// other nodes are among them too, since not every slice says where one is; that the
// pod is this node's the switch sees by its route.
type exposed struct {
	mu    sync.RWMutex
	ports map[vip]int // guarded by mu; how many service ports expose it
}

// Exposed reports whether a pod's port is open to clients outside the cluster who
// come by way of other nodes. It is for the switch's workers, once a flow.
func (g *Gateway) Exposed(a *wire.Addr, port uint16, proto uint8) bool {
	x := &g.exposed
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.ports[vip{*a, port, proto}] > 0
}

// replace makes what next exposes stand for what prev did; either may be nil.
func (x *exposed) replace(prev, next *Service) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ports == nil {
		x.ports = make(map[vip]int)
	}
	next.eachExposed(func(v vip) { x.ports[v]++ })
	prev.eachExposed(func(v vip) {
		if x.ports[v]--; x.ports[v] == 0 {
			delete(x.ports, v)
		}
	})
}

func (s *Service) eachExposed(f func(vip)) {
	if s == nil || s.ExternalLocal || s.NodePort == 0 && len(s.LoadBalancerIPs) == 0 && len(s.ExternalIPs) == 0 {
		return
	}
	for _, e := range s.Endpoints {
		f(vip{wire.AddrFrom(e.Addr), e.Port, s.Protocol})
	}
}
