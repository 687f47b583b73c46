package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/control/api"
	"vswitch/control/ipam"
	"vswitch/control/snapshot"
	"vswitch/internal/attach"
	"vswitch/internal/fdpass"
	"vswitch/internal/nodeapi"
	"vswitch/internal/upkeep"
	"vswitch/tap"
	"vswitch/vswitch"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway"
)

// resolveTimeout bounds the look-up of the store's host name.
const resolveTimeout = 2 * time.Second

// Ports that are no pod's.
const (
	gatewayName = "gateway"
	tunnelName  = "tunnel"
)

// vtepMAC follows from the state directory's instance, so that it outlives restarts.
func vtepMAC(instance string) frame.MAC {
	sum := sha256.Sum256([]byte("vswitch vtep " + instance))
	return frame.LocalMAC([6]byte(sum[:6]))
}

func (n *node) openController() error {
	lastGood := snapshot.At(n.state.file(snapshotFile))
	n.followResolvers()
	n.controller = control.NewController(control.ControllerConfig{
		Self: control.Self{
			Node: n.cfg.Node, Underlays: n.cfg.Underlay, Zone: n.cfg.Zone,
			ClusterCIDRs: n.cfg.ClusterCIDR, ServiceCIDRs: n.cfg.ServiceCIDR,
			LoadBalancerCIDRs: n.cfg.LBCIDR, NodesBalance: !n.cfg.Store.Kubernetes, Kubernetes: n.cfg.Store.Kubernetes, AllowExternalIPs: n.cfg.ExternalIPs,
			IsNameServer: n.isNameServer,
		},
		Dataplane: n.dataplane,
		LastGood:  lastGood,
		Log:       n.log,
		Tell:      n.tellProblem,
	})
	kept, err := lastGood.Load()
	if err != nil {
		n.log.Error("last good state is lost; waiting for the store", "err", err)
	}
	n.controller.Restore(kept)
	return nil
}

func (n *node) openAttachments() error {
	n.hostPorts = &hostPorts{identity: func(a *attach.Attachment) uint64 { return control.PodIdentity(n.attachments.Record(a)) }}
	c := attach.Config{
		Node: n.cfg.Node, Ports: n.ports, Routes: n.fib, Publisher: n.store, FDs: n.fds,
		OpenQueue: func(fd int, f tap.Features) (vswitch.Queue, error) { return tap.NewQueue(fd, f) },
		Forget:    n.dataplane.forgetPod,
		Records:   &attach.File{Path: n.state.file(attachmentsFile), BootID: n.bootID},
		MTUBytes:  n.mtuBytes, Queues: n.cfg.Workers, Timeout: api.PendingTimeout, Log: n.log,
	}
	if n.cfg.HostPorts {
		c.HostPorts = n.hostPorts
	}
	if n.metrics != nil {
		c.Attached = n.metrics.Attached
	}
	var err error
	n.attachments, err = attach.New(c)
	return err
}

func (n *node) openAPI() error {
	n.upkeep = upkeep.New(n.log, n.belongings()...)
	v := &view{
		node: n.cfg.Node, upkeep: n.upkeep, objects: n.controller, attachments: n.attachments,
		fib: n.fib, flows: n.flows, ports: n.ports, dataplane: n.dataplane,
	}
	n.tracer = &tracer{
		node: n.cfg.Node, ports: n.ports, attachments: n.attachments, fib: n.fib, dataplane: n.dataplane, objects: n.controller,
	}
	var upgrade func() error
	var refused func() (string, error)
	if n.opt.Keeper != nil {
		upgrade, refused = n.opt.Keeper.Renew, n.opt.Keeper.Refused
	}
	c := nodeapi.Config{
		Socket: n.cfg.SocketPath, Node: n.cfg.Node, Version: n.opt.Version, Upgrade: upgrade, UpgradeRefused: refused,
		Attachments: n.attachments, Objects: n.store, Ready: n.readiness, Rows: v.rows, Trace: n.tracer.Trace,
		Gateways:   []netip.Addr{vswitch.GatewayIPv4, vswitch.GatewayIPv6},
		GatewayMAC: vswitch.GatewayMAC.String(), Log: n.log,
		DNSAddrs: n.cfg.DNS.Addrs, DNSDomain: n.cfg.DNS.Domain,
		HostRoutes: slices.Concat(n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.LBCIDR),
		Captures:   &captures{ports: n.ports, attachments: n.attachments, dataplane: n.dataplane, node: n.cfg.Node},
	}
	if n.metrics != nil {
		c.Called = n.metrics.Called
	}
	server, err := nodeapi.Start(c)
	if err != nil {
		return err
	}
	n.onClose(server.Close)
	n.api = server
	fds, err := fdpass.Listen(api.FDSocket(n.cfg.SocketPath), n.takeQueues, n.log)
	if err != nil {
		return fmt.Errorf("--socket %s: %w", n.cfg.SocketPath, err)
	}
	n.onClose(fds.Close)
	n.descriptors = fds
	n.start("descriptor socket", fds.Serve)
	return nil
}

// takeQueues is what comes over the descriptor socket.
func (n *node) takeQueues(_ context.Context, m fdpass.Message, fds []int, _ fdpass.Cred) error {
	return n.attachments.Attach(m.Token, tap.Features(m.Features), fds)
}

func (n *node) readiness() nodeapi.Readiness {
	n.readyMu.Lock()
	defer n.readyMu.Unlock()
	switch {
	case !n.serving:
		return nodeapi.Readiness{
			Reason:  "the node has no pod CIDR yet: its store has not answered",
			Limited: true,
		}
	case n.pool.Free() == 0:
		return nodeapi.Readiness{Reason: fmt.Sprintf("every address of %v is leased", n.claim.PodCIDRs)}
	}
	return nodeapi.Readiness{}
}

// startForwarding opens gateway and switch, routes first: what is refused is
// refused from the first frame on.
func (n *node) startForwarding() error {
	programOwnRoutes(n.fib, &n.cfg, n.claim.PodCIDRs)
	routers := routerAddrs(n.claim.PodCIDRs)
	names, err := n.openDNS()
	if err != nil {
		return err
	}
	gc := gateway.Config{
		Queues: n.cfg.Workers, MTUBytes: n.mtuBytes, MAC: vswitch.GatewayMAC,
		Routers: routers,
		Cluster: n.cfg.ClusterCIDR, Service: n.cfg.ServiceCIDR,
		Allowed: n.cfg.AllowEgress, HostLoopback: n.cfg.HostLoopback,
		DeniedTCP:  slices.Concat(n.storePlaces(), n.metricsPlaces()),
		IsLocalPod: n.dataplane.isLocalPod, Unreachable: n.dataplane.unreachable, TakesIngress: n.dataplane.takesIngress, IsNode: n.dataplane.isNode, LeadsOut: n.dataplane.leadsOut,
		Keeper: n.fds, Bind: n.bind, Affinity: n.affinity,
		NoNodePorts: !n.cfg.HostPorts, LowPortOffset: uint16(n.cfg.LowPorts), EndpointGone: n.dataplane.endpointGone, Log: n.log,
	}
	if names != nil {
		gc.DNS, gc.DNSAddrs = names, n.cfg.DNS.Addrs
		n.names.Store(names)
	}
	g, err := gateway.New(gc)
	if err != nil {
		return err
	}
	sw, err := vswitch.New(vswitch.Config{
		Workers: n.cfg.Workers, FIB: n.fib, Flows: n.flows, Services: g, QueueDied: n.queueDied,
		NoPolling: !n.cfg.Polling, Held: true,
	})
	if err != nil {
		return errors.Join(err, g.Close())
	}
	n.onClose(sw.Close)
	n.onClose(g.Close) // while the switch still carries its resets to pods
	n.onClose(n.stopTasks)
	n.ports.serve(sw)
	n.hostPorts.serve(g)
	n.tracer.gateway.Store(g)
	n.gateway.Store(g)
	n.dataplane.serve(g, sw, vswitch.Facts{Routers: routers, TunnelPorts: n.facts.UDPPorts, LinkLocal: n.cfg.AllowEgress})
	n.start("flow expiry", n.expireFlows)
	n.start("dead ports", n.mourn)
	n.start("flows of endpoints gone", n.dataplane.forgetting.run)

	gatewayPort := vswitch.PortConfig{Kind: vswitch.PortGateway, Name: gatewayName, MTUBytes: n.mtuBytes}
	tunnelPort := vswitch.PortConfig{Kind: vswitch.PortTunnel, Name: tunnelName, MTUBytes: n.tunnelMTU, Paths: n.tunnel}
	for i := range n.cfg.Workers {
		gatewayPort.Queues = append(gatewayPort.Queues, g.Queue(i))
		tunnelPort.Queues = append(tunnelPort.Queues, n.tunnel.Queue(i))
	}
	if _, err := sw.AddPort(gatewayPort); err != nil {
		return err
	}
	_, err = sw.AddPort(tunnelPort)
	return err
}

// bind has the keeper, if there is one, open what this process may not.
func (n *node) bind(network string, at netip.AddrPort) (int, error) {
	if n.opt.Keeper == nil {
		return -1, fmt.Errorf("bind %v: %w", at, unix.EACCES)
	}
	return n.opt.Keeper.Bind(network, at)
}

// storePlaces are where nodes reach the store over the network, which pods must
// not: whoever can write to it owns every node. A host name that can't be
// resolved now is denied by its port alone, at the nodes.
func (n *node) storePlaces() []netip.AddrPort {
	urls := n.cfg.Store.URLs
	if n.cfg.Store.ListenClient != "" {
		urls = []string{n.cfg.Store.ListenClient}
	}
	var places []netip.AddrPort
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue // validated before
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, resolveTimeout)
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		cancel()
		if err != nil {
			n.log.Warn("the store's address is not known: pods are kept from its port at nodes only", "addr", u.Host, "err", err)
			addrs = []netip.Addr{netip.IPv4Unspecified()}
		}
		for _, a := range addrs {
			places = append(places, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		}
	}
	return places
}

// startControl brings the dataplane to the last good state, and from then on to
// what the store says. Pods that are known from before are still published.
func (n *node) startControl() error {
	// This node's pods are endpoints before their frames come in, or the first would
	// be refused for want of one.
	n.controller.Update(n.ownPods(), nil)
	n.start("reconciler", n.controller.Run)
	select {
	case <-n.controller.Passed():
	case <-n.ctx.Done():
		return context.Cause(n.ctx)
	}
	var err error
	n.pool, err = ipam.Open(ipam.Config{
		Path: n.state.file(leasesFile), BootID: n.bootID, CIDRs: n.claim.PodCIDRs, Log: n.log,
	})
	if err != nil {
		return err
	}
	if err := n.buryDeleted(); err != nil {
		return err
	}
	if err := n.attachments.Serve(n.pool); err != nil {
		return err
	}
	var pods []*corev1.Pod
	for _, a := range n.attachments.Restore() {
		pods = append(pods, n.attachments.Record(&a))
	}
	if err := n.ports.sw.Load().Start(); err != nil {
		return err
	}
	n.start("resets of what ended with the process before", n.resetOrphans)
	n.store.LoadPods(pods)
	n.start("store", func(ctx context.Context) error { return n.store.Run(ctx, n.controller) })
	return nil
}

// ownPods are the records of the pods that this node knows from before.
func (n *node) ownPods() []control.Object {
	var pods []control.Object
	for _, a := range n.attachments.List() {
		pods = append(pods, n.attachments.Record(&a))
	}
	return pods
}

// buryDeleted removes what plugins were told to delete while no daemon ran. The
// API listens by now, so whatever is deleted from here on comes that way.
func (n *node) buryDeleted() error {
	keys, err := api.Tombstones(n.cfg.SocketPath)
	if err != nil {
		n.log.Warn("some attachments deleted meanwhile are not known", "err", err)
	}
	for _, k := range keys {
		key := attach.Key{Network: k.Network, ContainerID: k.ContainerID, Ifname: k.Ifname}
		if err := n.attachments.Delete(key); err != nil {
			return err
		}
		if err := api.RemoveTombstone(n.cfg.SocketPath, k); err != nil {
			return err
		}
	}
	return nil
}

// servePods lets AddPod in.
func (n *node) servePods() error {
	n.onClose(func() error { n.attachments.Close(); return nil })
	n.start("sweep", n.sweep)
	n.start("upkeep", n.upkeep.Run)
	n.readyMu.Lock()
	n.serving = true
	n.readyMu.Unlock()
	return nil
}
