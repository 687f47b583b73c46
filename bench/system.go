package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"vswitch/internal/lab"
)

// system is a network that can be measured.
type system struct {
	topologies []Topology
	// open builds the topology in an empty lab; nil: there is no network.
	open func(context.Context, *lab.Lab, networkKey) (*network, error)
	// code is the package whose benchmarks stand for a system that has no network.
	code string
	// userSpace marks another way to move packets in user space: plotted apart.
	userSpace bool
}

var systems = map[string]system{
	"vswitch": {topologies: []Topology{SameNode, TwoNodes, Egress, NodePort, ClusterIP, Kubernetes, Simulated, Idle, Attach}, open: openVswitch},
	// vswitch-direct is vswitch as NodePort and ClusterIP build it, pod to pod: what a service costs.
	"vswitch-direct": {topologies: []Topology{NodePort, ClusterIP}, open: openVswitch},
	// vswitch-proxy ends connections in the netstack, as a service can ask for.
	systemProxy: {topologies: []Topology{ClusterIP}, open: openVswitch},
	// vswitch-few is what a node of many services is compared with.
	systemFew: {topologies: []Topology{ClusterIP, Kubernetes}, open: openVswitch},
	// vswitch-plain has TAPs without offload, as package songgao/water makes them.
	"vswitch-plain": {topologies: []Topology{SameNode}, open: openVswitch, userSpace: true},
	"kernel-bridge": {topologies: []Topology{SameNode}, open: openKernelBridge},
	"kernel-vxlan":  {topologies: []Topology{TwoNodes}, open: openKernelVXLAN},
	"nftables-dnat": {topologies: []Topology{ClusterIP}, open: openNftables},
	"ovs-netdev":    {topologies: []Topology{SameNode}, open: openOVS, userSpace: true},
	"slirp4netns":   {topologies: []Topology{Egress, RootlessOut, RootlessIn}, open: openUserMode((*lab.Node).Slirp4netns), userSpace: true},
	"pasta":         {topologies: []Topology{Egress, RootlessOut, RootlessIn}, open: openUserMode((*lab.Node).Pasta), userSpace: true},
	// vswitch-rootless is the command `vswitch rootless run`.
	"vswitch-rootless": {topologies: []Topology{RootlessOut, RootlessIn}, open: openRootless},
	// cni-bridge is what most container engines come with.
	"cni-bridge": {topologies: []Topology{Attach}, open: openCNIBridge},
	"fib":        {topologies: []Topology{InMemory}, code: "vswitch/fib"},
	"flow":       {topologies: []Topology{InMemory}, code: "vswitch/flow"},
	"node":       {topologies: []Topology{InMemory}, code: "internal/node"},
}

func systemNames() []string { return slices.Sorted(maps.Keys(systems)) }

// openTimeout is for a network to be ready in, its daemons and store included.
const openTimeout = 60 * time.Second

// openNetwork builds a system's topology in a lab of its own.
func openNetwork(ctx context.Context, k networkKey, o Options) (*network, error) {
	open := systems[k.system].open
	if open == nil {
		return &network{binDir: o.BinDir, code: systems[k.system].code}, nil
	}
	offload := lab.OffloadDefault
	if k.underlay != "" {
		var err error
		if offload, err = lab.ParseOffload(k.underlay); err != nil {
			return nil, err
		}
	}
	// One family under the nodes makes the derived MTU the same everywhere.
	l, err := lab.New(lab.Config{BinDir: o.BinDir, MTUBytes: underlayMTU, NoIPv6: true, Offload: offload})
	if err != nil {
		return nil, err
	}
	timeout := openTimeout
	if k.topology.large() {
		timeout = fillTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %v", timeout))
	defer cancel()
	n, err := open(ctx, l, k)
	if err == nil && n.client != nil {
		err = errors.Join(checkMTU(k, n.pods(k)...), n.reachable(ctx, o.Self))
	}
	if err != nil {
		if said := l.Failures(20); said != "" {
			err = fmt.Errorf("%w\n%s", err, said)
		}
		return nil, errors.Join(err, l.Close())
	}
	n.lab, n.binDir = l, o.BinDir
	return n, nil
}

// reachable waits until the server can be reached from the client: routes and
// services reach a node a moment after it is ready, and not every load tries twice.
func (n *network) reachable(ctx context.Context, self string) error {
	kinds := []string{"tcp-rtt", "udp-rtt"}
	if n.tcpOnly {
		kinds = kinds[:1]
	}
	for _, kind := range kinds {
		if _, err := roundTrips(ctx, &Load{Kind: kind}, n, time.Millisecond, self); err != nil {
			return fmt.Errorf("the server can't be reached: %s: %w", kind, err)
		}
	}
	return nil
}

// pods are the endpoints whose MTU is the network's: not the host itself.
func (n *network) pods(k networkKey) []*lab.Namespace {
	switch k.topology {
	case RootlessOut:
		return []*lab.Namespace{n.client}
	case RootlessIn:
		return []*lab.Namespace{n.server}
	}
	return []*lab.Namespace{n.client, n.server}
}

// checkMTU keeps two sides from being compared at different packet sizes.
func checkMTU(k networkKey, pods ...*lab.Namespace) error {
	for _, p := range pods {
		link, err := p.Netlink().LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if mtu := link.Attrs().MTU; mtu != k.mtuBytes {
			return fmt.Errorf("%s has MTU %d, not %d as the other side: set `mtu` in the scenario", k.system, mtu, k.mtuBytes)
		}
	}
	return nil
}
