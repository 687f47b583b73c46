package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/rootless/plan"
	"vswitch/internal/sockdiag"
	"vswitch/vswitch/gateway"
)

// The host's ports follow what listens inside. The kernel tells nobody that a socket
// begins to listen, so it is asked now and then: a fifth of a millisecond each time.
const (
	followInterval = 200 * time.Millisecond // a thousandth of a core
	listBytes      = 32 << 10
)

// publisher keeps the gateway's host ports as they should be. One goroutine at a
// time uses it.
type publisher struct {
	cfg     *Config
	own     []netip.Addr
	gateway hostPorts
	fd      int // of sockdiag.Open
	buf     []byte
	// clients are the ports that UDP sockets get which ask for none.
	clients PortRange

	open   map[gateway.HostPortKey][]gateway.Endpoint // by Auto
	failed bool                                       // the last look; it was said
}

// hostPorts is the part of the gateway that is told.
type hostPorts interface {
	PutHostPort(gateway.HostPort) error
	DeleteHostPort(gateway.HostPortKey)
}

// Linux's default of net.ipv4.ip_local_port_range, which a new namespace has.
var defaultClients = PortRange{First: 32768, Last: 60999, UDP: true}

// publish opens the host ports that are wanted from the start, and follows what
// listens inside until stop is called.
func publish(ctx context.Context, cfg *Config, g hostPorts) (stop func(), err error) {
	p := newPublisher(cfg, g)
	for _, port := range cfg.Publish.Ports {
		if err := g.PutHostPort(p.fixed(port)); err != nil {
			return nil, err
		}
	}
	if !cfg.Publish.Auto {
		return func() {}, nil
	}
	fds, err := cfg.Keeper.Get(SocketsName)
	if err != nil {
		return nil, err
	}
	p.fd = fds[0]
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { p.follow(ctx) })
	return func() {
		cancel()
		following.Wait()
		unix.Close(p.fd)
	}, nil
}

func newPublisher(cfg *Config, g hostPorts) *publisher {
	return &publisher{
		cfg: cfg, own: cfg.Plan.Of(plan.Addr), gateway: g, buf: make([]byte, listBytes),
		clients: defaultClients, open: map[gateway.HostPortKey][]gateway.Endpoint{},
	}
}

// fixed is a port that is always open.
func (p *publisher) fixed(port Port) gateway.HostPort {
	h := gateway.HostPort{HostPortKey: gateway.HostPortKey{
		Pod: portName, HostIP: port.Host, Port: port.Port, Protocol: protocolOf(port.UDP),
	}}
	for _, a := range p.own {
		h.Endpoints = append(h.Endpoints, gateway.Endpoint{Addr: a, Port: port.Inside, ID: 1})
	}
	return h
}

func (p *publisher) follow(ctx context.Context) {
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		p.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks what listens, and opens and closes ports by it.
func (p *publisher) look() {
	all, err := sockdiag.List(p.fd, p.buf)
	if err != nil {
		if !p.failed {
			p.cfg.Log.Warn("what listens inside is not known: its ports stay as they are", "err", err)
		}
		p.failed = true
		return
	}
	p.failed = false
	p.apply(p.wanted(all))
}

// wanted are the host ports for what listens.
func (p *publisher) wanted(all []sockdiag.Listener) map[gateway.HostPortKey][]gateway.Endpoint {
	want := map[gateway.HostPortKey][]gateway.Endpoint{}
	for _, l := range all {
		if !p.selected(l.Port, l.UDP) {
			continue
		}
		var to []gateway.Endpoint
		for _, a := range p.own {
			if reaches(l, a) {
				to = append(to, gateway.Endpoint{Addr: a, Port: l.Port, ID: 1})
			}
		}
		if len(to) == 0 {
			continue // loopback, or an address that is not ours
		}
		at := p.cfg.Publish.At
		if len(at) == 0 {
			at = []netip.Addr{{}}
		}
		for _, a := range at {
			key := gateway.HostPortKey{Pod: portName, HostIP: a, Port: l.Port, Protocol: protocolOf(l.UDP)}
			for _, e := range to {
				if !slices.Contains(want[key], e) {
					want[key] = append(want[key], e)
				}
			}
		}
	}
	for _, port := range p.cfg.Publish.Ports { // open anyway, and they may lead elsewhere
		for key := range want {
			if key.Port == port.Port && key.Protocol == protocolOf(port.UDP) {
				delete(want, key)
			}
		}
	}
	for _, to := range want {
		slices.SortFunc(to, func(a, b gateway.Endpoint) int { return a.Addr.Compare(b.Addr) })
	}
	return want
}

// reaches reports whether what comes for an address gets to a listener.
func reaches(l sockdiag.Listener, a netip.Addr) bool {
	if !l.Addr.IsUnspecified() {
		return l.Addr == a
	}
	return l.Addr.Is4() == a.Is4() || l.V4
}

func (p *publisher) selected(port uint16, udp bool) bool {
	has := func(r PortRange) bool { return r.has(port, udp) }
	pub := &p.cfg.Publish
	switch {
	case slices.ContainsFunc(pub.Except, has):
		return false
	case len(pub.Only) > 0:
		return slices.ContainsFunc(pub.Only, has)
	}
	return !p.clients.has(port, udp)
}

// apply makes the gateway's ports those wanted.
func (p *publisher) apply(want map[gateway.HostPortKey][]gateway.Endpoint) {
	for key := range p.open {
		if want[key] == nil {
			p.gateway.DeleteHostPort(key)
			delete(p.open, key)
			p.cfg.Log.Info("port closed", "addr", describe(key))
		}
	}
	for key, to := range want {
		had, ok := p.open[key]
		if ok && slices.Equal(had, to) {
			continue
		}
		p.open[key] = to // if refused, refused again
		if err := p.gateway.PutHostPort(gateway.HostPort{HostPortKey: key, Endpoints: to}); err != nil {
			p.cfg.Log.Warn("port not opened", "addr", describe(key), "err", err)
			continue
		}
		p.cfg.Log.Info("port opened", "addr", describe(key))
	}
}

func describe(k gateway.HostPortKey) string {
	addr := "*"
	if k.HostIP.IsValid() {
		addr = k.HostIP.String()
	}
	protocol := "tcp"
	if k.Protocol == protocolOf(true) {
		protocol = "udp"
	}
	return fmt.Sprintf("%s:%d/%s", addr, k.Port, protocol)
}
