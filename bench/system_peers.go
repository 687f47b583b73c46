package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"vswitch/internal/lab"
)

// The networks vswitch is compared with.

var (
	kernelCIDRs4 = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.244.1.0/24")}
	kernelCIDRs6 = []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/64"), netip.MustParsePrefix("fd00:10:244:1::/64")}
)

// between are the endpoints of two pods.
func between(client, server *lab.KernelPod) *network {
	return &network{endpoints: endpoints{client: client.Namespace, server: server.Namespace, to: server.IPv4}}
}

func openKernelBridge(_ context.Context, l *lab.Lab, k networkKey) (*network, error) {
	pods, err := l.KernelBridge(2, k.mtuBytes)
	if err != nil {
		return nil, err
	}
	return between(pods[0], pods[1]), nil
}

func openOVS(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	pods, process, err := l.OVSNetdev(ctx, 2, k.mtuBytes)
	if err != nil {
		return nil, err
	}
	n := between(pods[0], pods[1])
	n.restless = process
	return n, nil
}

func openKernelVXLAN(_ context.Context, l *lab.Lab, k networkKey) (*network, error) {
	a, b, err := l.AddPair("a", "b")
	if err != nil {
		return nil, err
	}
	var nodes []*lab.Flannel
	for i, n := range []*lab.Node{a, b} {
		f, err := n.Flannel(kernelCIDRs4[i], kernelCIDRs6[i], k.mtuBytes)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, f)
	}
	if err := errors.Join(nodes[0].AddPeer(nodes[1].Peer()), nodes[1].AddPeer(nodes[0].Peer())); err != nil {
		return nil, err
	}
	client, err := nodes[0].AddPod()
	if err != nil {
		return nil, err
	}
	server, err := nodes[1].AddPod()
	if err != nil {
		return nil, err
	}
	return between(client, server), nil
}

// openNftables is a node of kernel devices whose service address is kube-proxy's
// nftables rules.
func openNftables(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	node, err := l.AddNode("a")
	if err != nil {
		return nil, err
	}
	f, err := node.Flannel(kernelCIDRs4[0], kernelCIDRs6[0], k.mtuBytes)
	if err != nil {
		return nil, err
	}
	var pods []*lab.KernelPod
	for range 2 {
		p, err := f.AddPod()
		if err != nil {
			return nil, err
		}
		if err := f.RouteAll(p); err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	service := netip.AddrPortFrom(serviceAddr, loadPort)
	if err := f.KubeProxy(ctx, service, netip.AddrPortFrom(pods[1].IPv4, loadPort)); err != nil {
		return nil, err
	}
	n := between(pods[0], pods[1])
	n.to = serviceAddr
	return n, nil
}

// openUserMode is a network namespace that a user-mode network gives the
// outside, and a server there.
func openUserMode(attach func(*lab.Node, context.Context, lab.UserMode) (*lab.Namespace, error)) func(context.Context, *lab.Lab, networkKey) (*network, error) {
	return func(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
		node, err := l.AddNode("a")
		if err != nil {
			return nil, err
		}
		c := lab.UserMode{MTUBytes: k.mtuBytes}
		if k.topology == RootlessIn {
			c.TCPPort, c.UDPPort = loadPort, loadPort
		}
		pod, err := attach(node, ctx, c)
		if err != nil {
			return nil, err
		}
		if k.topology == Egress {
			return outward(l, pod)
		}
		return withHost(k, node, pod), nil
	}
}

// openRootless is `vswitch rootless run` in place of another user-mode network.
func openRootless(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	node, err := l.AddNode("a")
	if err != nil {
		return nil, err
	}
	// Ports are given, as to the others: what listens is followed, but not within a moment.
	port := strconv.Itoa(loadPort)
	args := []string{"--interface", "eth0", "--mtu", strconv.Itoa(k.mtuBytes), "--publish", port + "," + port + "/udp"}
	if k.topology == RootlessOut {
		args = append(args[:len(args)-1], "none")
	}
	c, err := node.Rootless(ctx, "rootless", lab.RootlessConfig{Args: args})
	if err != nil {
		return nil, err
	}
	return withHost(k, node, c.Namespace), nil
}

// withHost are the endpoints of a namespace and the host it is on, which is reached by
// its address and not by loopback, where pasta passes bytes by without its network.
func withHost(k networkKey, host *lab.Node, inside *lab.Namespace) *network {
	e := endpoints{client: inside, server: host.Namespace, to: host.Underlay4}
	if k.topology == RootlessIn {
		e.client, e.server = e.server, e.client
	}
	return &network{endpoints: e}
}

// outward are the endpoints of a pod and the machine outside. The machine's own
// address is asked, not one it holds besides: a server that listens on all of
// them answers UDP from that one.
func outward(l *lab.Lab, pod *lab.Namespace) (*network, error) {
	outside, err := l.Outside()
	if err != nil {
		return nil, err
	}
	return &network{endpoints: endpoints{client: pod, server: outside.Namespace, to: outside.Underlay4}}, nil
}

// openCNIBridge is a node whose pods are attached by the plugins bridge and host-local.
func openCNIBridge(_ context.Context, l *lab.Lab, _ networkKey) (*network, error) {
	n, err := l.AddNode("a")
	if err != nil {
		return nil, err
	}
	const conf = `{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.22.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`
	return &network{node: n, pod: lab.PodSpec{CNIVersion: "1.0.0", Network: fmt.Sprintf(conf, n.StateDir())}}, nil
}
