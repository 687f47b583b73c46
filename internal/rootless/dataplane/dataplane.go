// Package dataplane moves the frames of one namespace: a switch with two ports, the
// namespace's TAP and the gateway, which is its way out and in.
//
// It is what a node has less all that makes several namespaces and several nodes one
// network: no tunnel, no store, no services, no objects (docs/adr/0024). It gets its
// descriptors from the keeper that started it, opens host sockets and nothing else,
// and needs no capability. Only cmd/vswitch may import it.
//
//	dataplane.go  the parts, put together
//	publish.go    which ports of the host lead inside
//	follow.go     those of what listens there
//	forwards.go   those that are asked for by a socket
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/dns"
	"vswitch/internal/fdstore"
	"vswitch/internal/resident"
	"vswitch/internal/rootless/plan"
	"vswitch/tap"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// Names under which the keeper has what the dataplane works with.
const (
	QueuesName  = "queues"  // of the TAP
	SocketsName = "sockets" // what sockdiag.Open opened inside
)

// Keeper is the parent of this process (package keeper).
type Keeper interface {
	fdstore.Store
	Begin(context.Context) error
	Ready() error
}

// Config is what a dataplane is told.
type Config struct {
	Plan     plan.Plan    `json:"plan"`
	Features tap.Features `json:"features"` // of the TAP
	Publish  Publish      `json:"publish"`
	// API has requests at the socket under APIName answered (package slirp).
	API bool `json:"api,omitempty"`
	// LowPortOffset is added to a port of the host that this user may not open. Zero: it
	// stays closed.
	LowPortOffset uint16 `json:"lowPortOffset,omitempty"`
	// Resolvers are asked for names; none: those of the host's resolv.conf.
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`

	Keeper Keeper       `json:"-"`
	Log    *slog.Logger `json:"-"`
}

const (
	hostResolvers = "/etc/resolv.conf"
	// The namespace's names end in none of ours: a domain that nobody has (RFC 6761
	// section 6.4) stands for the cluster's.
	noDomain = "vswitch.invalid"

	portName    = "namespace"
	gatewayName = "gateway"

	// See internal/node: a share of the flow table is looked through each second.
	expiryInterval = time.Second
	expiryRounds   = 10
)

// Run moves frames until ctx ends, which is not an error, or the TAP does.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Plan.Check(); err != nil {
		return err
	}
	if err := cfg.Keeper.Begin(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Workers hold a processor each while frames come.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), cfg.Plan.Queues+2))

	routes := fib.New()
	flows, err := flow.New(flow.Config{PerOwner: flow.DefaultConnections}) // one namespace has all
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, flows.Close()) }()
	names, closeNames, err := openDNS(&cfg)
	if err != nil {
		return err
	}
	defer closeNames()
	g, err := openGateway(&cfg, names)
	if err != nil {
		return err
	}
	sw, err := vswitch.New(vswitch.Config{
		Workers: cfg.Plan.Queues, FIB: routes, Flows: flows, Services: g, Held: true,
		QueueDied: func(port string, err error) { cancel(fmt.Errorf("port %s: %w", port, err)) },
	})
	if err != nil {
		return errors.Join(err, g.Close())
	}
	defer func() { err = errors.Join(err, sw.Close()) }()
	defer func() { err = errors.Join(err, g.Close()) }() // while the switch still carries its resets
	sw.SetFacts(vswitch.Facts{Routers: cfg.Plan.Of(plan.Router)})
	if err := addPorts(&cfg, sw, g, routes); err != nil {
		return err
	}
	stop, err := publish(ctx, &cfg, g)
	if err != nil {
		return err
	}
	defer stop()
	if cfg.API {
		stop, err := serveAPI(ctx, &cfg, g)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := sw.Start(); err != nil {
		return err
	}
	if err := cfg.Keeper.Ready(); err != nil {
		return err
	}
	if err := resident.Trim(); err != nil {
		cfg.Log.Warn("the dataplane keeps memory that it doesn't need", "err", err)
	}
	return tend(ctx, sw, flows)
}

// tend expires flows until ctx ends.
func tend(ctx context.Context, sw *vswitch.Switch, flows *flow.Table) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case <-tick.C:
			flows.Expire(sw.Tick(), flows.Cap()/expiryRounds+1)
		}
	}
}

// openDNS makes the server for names, nil if there is to be none.
func openDNS(cfg *Config) (*dns.Server, func(), error) {
	if cfg.Plan.NoDNS {
		return nil, func() {}, nil
	}
	resolvers := func() []netip.AddrPort { return cfg.Resolvers }
	if len(cfg.Resolvers) == 0 {
		resolvers = dns.NewResolvConf(hostResolvers, nil, cfg.Plan.Of(plan.DNS), cfg.Log).Servers
	}
	forward := dns.NewForwarder(dns.ForwarderConfig{Resolvers: resolvers, Log: cfg.Log})
	s, err := dns.New(dns.Config{Domain: noDomain, Zone: noZone{}, Forward: forward})
	if err != nil {
		forward.Close()
		return nil, nil, err
	}
	return s, forward.Close, nil
}

// noZone has no names.
type noZone struct{}

func (noZone) Service(string, string) *dns.Service { return nil }
func (noZone) HasNamespace(string) bool            { return false }
func (noZone) Behind(netip.Addr) []dns.Name        { return nil }

func openGateway(cfg *Config, names *dns.Server) (*gateway.Gateway, error) {
	p := &cfg.Plan
	own := p.Of(plan.Addr)
	c := gateway.Config{
		Queues: p.Queues, MTUBytes: p.MTUBytes, MAC: vswitch.GatewayMAC, Routers: p.Of(plan.Router),
		IsLocalPod: func(a netip.Addr) bool { return slices.Contains(own, a) },
		Keeper:     cfg.Keeper, LowPortOffset: cfg.LowPortOffset, Log: cfg.Log,
		// One namespace has what a node's pods share.
		ConnectionsPerPod: maxConnections, HalfOpenPerPod: maxHalfOpen, SessionsPerPod: maxConnections,
	}
	for _, n := range p.Nets {
		c.Cluster = append(c.Cluster, n.Prefix)
	}
	if p.HostLoopback {
		c.HostLoopback = p.Of(plan.Router)
	}
	if names != nil {
		c.DNS, c.DNSAddrs = names, p.Of(plan.DNS)
	}
	return gateway.New(c)
}

const (
	maxConnections = 32768 // more than there are ephemeral ports
	maxHalfOpen    = 1024
)

// addPorts gives the switch its two ports, and the routes to them last.
func addPorts(cfg *Config, sw *vswitch.Switch, g *gateway.Gateway, routes *fib.Table) error {
	p := &cfg.Plan
	inner, err := openQueues(cfg)
	if err != nil {
		return err
	}
	port := vswitch.PortConfig{
		Kind: vswitch.PortPod, Name: portName, MAC: p.MAC, Addrs: p.Of(plan.Addr), MTUBytes: p.MTUBytes,
		Queues: inner, JoinDatagrams: cfg.Features.Has(tap.USO),
	}
	id, err := sw.AddPort(port)
	if err != nil {
		return err
	}
	out := vswitch.PortConfig{Kind: vswitch.PortGateway, Name: gatewayName, MTUBytes: p.MTUBytes}
	for i := range p.Queues {
		out.Queues = append(out.Queues, g.Queue(i))
	}
	if _, err := sw.AddPort(out); err != nil {
		return err
	}
	for _, n := range p.Nets {
		routes.SetPrefix(n.Prefix, fib.NextHop{Kind: fib.Unreachable})
		routes.SetHost(n.Router, fib.NextHop{Kind: fib.Router})
		if p.HostLoopback {
			routes.SetHost(n.Router, fib.NextHop{Kind: fib.Egress})
		}
		if !p.NoDNS {
			routes.SetHost(n.DNS, fib.NextHop{Kind: fib.VIP})
		}
		routes.SetHost(n.Addr, fib.NextHop{Kind: fib.Port, Index: id})
		world := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if n.Addr.Is6() {
			world = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes.SetPrefix(world, fib.NextHop{Kind: fib.Egress})
	}
	return nil
}

// openQueues makes queues of the TAP's descriptors.
func openQueues(cfg *Config) ([]vswitch.Queue, error) {
	fds, err := cfg.Keeper.Get(QueuesName)
	if err != nil {
		return nil, err
	}
	if len(fds) != cfg.Plan.Queues {
		err = fmt.Errorf("%d queues, want %d", len(fds), cfg.Plan.Queues)
	}
	var queues []vswitch.Queue
	for i := 0; i < len(fds) && err == nil; i++ {
		var q *tap.Queue
		if q, err = tap.NewQueue(fds[i], cfg.Features); err == nil {
			queues = append(queues, q)
		}
	}
	if err == nil {
		return queues, nil
	}
	for _, fd := range fds[len(queues):] {
		unix.Close(fd)
	}
	for _, q := range queues {
		err = errors.Join(err, q.Close())
	}
	return nil, err
}
