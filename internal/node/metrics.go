package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"vswitch/internal/dns"
	"vswitch/internal/health"
	"vswitch/internal/metrics"
	"vswitch/internal/upkeep"
	"vswitch/vswitch"
	"vswitch/vswitch/gateway"
)

// openMetrics prepares to show what the parts count, if somebody is to see it.
func (n *node) openMetrics() error {
	if len(n.cfg.Metrics.Addrs) == 0 {
		return nil
	}
	n.metrics = metrics.New(metrics.Sources{
		Version: n.opt.Version,
		Ports:   n.portFigures, Retired: n.ports.retired,
		Flows:  func() (int, int) { return n.flows.Len(), n.flows.Cap() },
		Tunnel: n.tunnel.Stats, Peers: n.dataplane.peersByTrains,
		Gateway: func() gateway.Stats {
			if g := n.gateway.Load(); g != nil {
				return g.Stats()
			}
			return gateway.Stats{}
		},
		Listeners: n.dataplane.listeners, Proxies: n.dataplane.proxies,
		DNS: func() dns.Stats {
			if s := n.names.Load(); s != nil {
				return s.Stats()
			}
			return dns.Stats{}
		},
		Upkeep: func() []upkeep.Status { return n.upkeep.Status() }, Attachments: n.attachmentsByState, FreeAddresses: n.freeAddresses,
		Ready:   func() bool { return n.readiness().Reason == "" },
		Control: n.controller.Figures, Programming: n.controller.ProgrammingLatency(), Restarts: n.restarts,
	}, n.log)
	return nil
}

// serveHealth says how the node is from here on, while it waits for its store too.
func (n *node) serveHealth() error {
	if n.metrics == nil {
		return nil
	}
	c := health.Config{Addrs: n.cfg.Metrics.Addrs, Alive: n.alive, Ready: n.ready, Metrics: n.metrics.Handler(), Log: n.log}
	if !n.cfg.Metrics.ForPods {
		c.Refused = func(a netip.Addr) bool {
			return slices.ContainsFunc(n.cfg.ClusterCIDR, func(p netip.Prefix) bool { return p.Contains(a) })
		}
	}
	n.onClose(health.Start(c).Close)
	return nil
}

// metricsPlaces are where the node says how it is, which pods must not reach by way of
// the host: that they come from the host's address then, the server can't see.
func (n *node) metricsPlaces() []netip.AddrPort {
	if n.cfg.Metrics.ForPods {
		return nil
	}
	return n.cfg.Metrics.Addrs
}

// alive fails where only a restart helps: a worker that no longer turns, or a lock that
// nobody gives back.
func (n *node) alive(context.Context) error {
	n.attachments.List()
	if sw := n.ports.sw.Load(); sw != nil {
		sw.Settle()
	}
	return nil
}

// ready fails as long as a pod that is added would not be connected.
func (n *node) ready(ctx context.Context) error {
	if r := n.readiness(); r.Reason != "" {
		return errors.New(r.Reason)
	}
	return n.alive(ctx)
}

// portFigures are the ports with whose they are.
func (n *node) portFigures() []metrics.Port {
	type owner struct{ kind, namespace, name string }
	owners := map[string]owner{} // by port name
	for _, a := range n.attachments.List() {
		kind := "pod"
		if a.Host {
			kind = "host"
		}
		owners[a.Port] = owner{kind, a.Pod.Namespace, a.Pod.Name}
	}
	var all []metrics.Port
	for _, p := range n.ports.Stats() {
		o := owners[p.Name]
		switch {
		case p.Kind == vswitch.PortTunnel:
			o.kind = tunnelName
		case p.Kind == vswitch.PortGateway:
			o.kind = gatewayName
		case o.kind == "":
			continue // it went between the two looks
		}
		all = append(all, metrics.Port{Kind: o.kind, Namespace: o.namespace, Pod: o.name, PortStats: p})
	}
	slices.SortFunc(all, func(a, b metrics.Port) int { return int(a.ID) - int(b.ID) })
	return all
}

func (n *node) attachmentsByState() map[string]int {
	count := map[string]int{"attached": 0, "pending": 0, "detached": 0}
	for _, a := range n.attachments.List() {
		count[a.State.String()]++
	}
	return count
}

func (n *node) freeAddresses() (int, bool) {
	n.readyMu.Lock()
	defer n.readyMu.Unlock()
	if !n.serving {
		return 0, false
	}
	return n.pool.Free(), true
}

func (n *node) restarts() uint64 {
	if n.opt.Keeper == nil {
		return 0
	}
	return n.opt.Keeper.Starts()
}
