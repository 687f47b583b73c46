package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"vswitch/internal/lab"
)

// system is a network that can be measured.
type system struct {
	topologies []Topology
	// open builds the topology in an empty lab.
	open func(context.Context, *lab.Lab, networkKey) (*network, error)
}

var systems = map[string]system{
	"vswitch":       {topologies: []Topology{SameNode, TwoNodes}, open: openVswitch},
	"kernel-bridge": {topologies: []Topology{SameNode}, open: openKernelBridge},
	"kernel-vxlan":  {topologies: []Topology{TwoNodes}, open: openKernelVXLAN},
}

func systemNames() []string { return slices.Sorted(maps.Keys(systems)) }

// openTimeout is for a network to be ready in, its daemons and store included.
const openTimeout = 60 * time.Second

// openNetwork builds a system's topology in a lab of its own.
func openNetwork(ctx context.Context, k networkKey, o Options) (*network, error) {
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
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, fmt.Errorf("not ready after %v", openTimeout))
	defer cancel()
	n, err := systems[k.system].open(ctx, l, k)
	if err == nil {
		err = errors.Join(checkMTU(k, n.client, n.server), n.reachable(ctx, o.Self))
	}
	if err != nil {
		if said := l.Failures(20); said != "" {
			err = fmt.Errorf("%w\n%s", err, said)
		}
		return nil, errors.Join(err, l.Close())
	}
	n.lab = l
	return n, nil
}

// reachable waits until the server can be reached from the client: routes reach
// a node a moment after it is ready, and not every load tries twice.
func (n *network) reachable(ctx context.Context, self string) error {
	_, err := roundTrips(ctx, &Load{Kind: "udp-rtt"}, n.endpoints, time.Millisecond, self)
	if err != nil {
		return fmt.Errorf("the server can't be reached: %w", err)
	}
	return nil
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

func openKernelBridge(_ context.Context, l *lab.Lab, k networkKey) (*network, error) {
	pods, err := l.KernelBridge(2, k.mtuBytes)
	if err != nil {
		return nil, err
	}
	return &network{endpoints: endpoints{client: pods[0].Namespace, server: pods[1].Namespace, to: pods[1].IPv4}}, nil
}

func openKernelVXLAN(_ context.Context, l *lab.Lab, k networkKey) (*network, error) {
	a, b, err := l.AddPair("a", "b")
	if err != nil {
		return nil, err
	}
	fa, err := a.Flannel(netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64"), k.mtuBytes)
	if err != nil {
		return nil, err
	}
	fb, err := b.Flannel(netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64"), k.mtuBytes)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fa.AddPeer(fb.Peer()), fb.AddPeer(fa.Peer())); err != nil {
		return nil, err
	}
	client, err := fa.AddPod()
	if err != nil {
		return nil, err
	}
	server, err := fb.AddPod()
	if err != nil {
		return nil, err
	}
	return &network{endpoints: endpoints{client: client.Namespace, server: server.Namespace, to: server.IPv4}}, nil
}

func openVswitch(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	var nodes []*lab.Node
	if k.topology == SameNode {
		n, err := l.AddNode("a")
		if err != nil {
			return nil, err
		}
		nodes = []*lab.Node{n, n}
		if err := lab.RunCluster(ctx, nodes[:1], "--mtu", strconv.Itoa(k.mtuBytes)); err != nil {
			return nil, err
		}
	} else {
		a, b, err := l.AddPair("a", "b")
		if err != nil {
			return nil, err
		}
		nodes = []*lab.Node{a, b}
		if err := lab.RunCluster(ctx, nodes); err != nil { // the MTU is derived, and checked
			return nil, err
		}
	}
	client, err := nodes[0].AddPod(ctx, lab.PodSpec{Name: "client"})
	if err != nil {
		return nil, err
	}
	server, err := nodes[1].AddPod(ctx, lab.PodSpec{Name: "server"})
	if err != nil {
		return nil, err
	}
	return &network{
		endpoints: endpoints{client: client.Namespace, server: server.Namespace, to: server.IPv4},
		dropped:   func(ctx context.Context) (map[string]uint64, error) { return vswitchDrops(ctx, nodes) },
	}, nil
}

// vswitchDrops sums the nodes' drops by reason.
func vswitchDrops(ctx context.Context, nodes []*lab.Node) (map[string]uint64, error) {
	sum := map[string]uint64{}
	for i, n := range nodes {
		if slices.Contains(nodes[:i], n) {
			continue
		}
		var rows []struct {
			Name  string `json:"name"`
			Count uint64 `json:"count"`
		}
		if err := n.Get(ctx, "drops", &rows); err != nil {
			return nil, err
		}
		for _, r := range rows {
			sum[r.Name] += r.Count
		}
	}
	return sum, nil
}
