package gateway

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"vswitch/internal/wire"
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// deniedAlways are destinations that pods never reach through the host: its own
// loopback, link-local services such as cloud metadata, and what is no host's
// address. IPv6 forms that carry an IPv4 address in a way that a socket would
// undo are among them, or ::ffff:127.0.0.1 would be a way around.
var deniedAlways = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),      // RFC 791 section 3.2: this host
	netip.MustParsePrefix("127.0.0.0/8"),    // RFC 1122 section 3.2.1.3
	netip.MustParsePrefix("169.254.0.0/16"), // RFC 3927
	netip.MustParsePrefix("224.0.0.0/4"),    // RFC 5771: multicast
	netip.MustParsePrefix("240.0.0.0/4"),    // RFC 1112 section 4: reserved, broadcast
	netip.MustParsePrefix("::/96"),          // unspecified, loopback, RFC 4291 section 2.5.5.1
	netip.MustParsePrefix("::ffff:0:0/96"),  // RFC 4291 section 2.5.5.2: v4-mapped
	netip.MustParsePrefix("fe80::/10"),      // RFC 4291 section 2.5.6: link-local
	netip.MustParsePrefix("ff00::/8"),       // RFC 4291 section 2.7: multicast
}

// policy answers where pods may go and how their clients are seen.
type policy struct {
	cfg              *Config
	denied           []netip.Prefix
	router4, router6 netip.Addr
	loop4, loop6     netip.Addr // stand for the host's loopback; invalid: nothing does
	hostAddrs        atomic.Pointer[[]netip.Addr]
}

func newPolicy(c *Config) *policy {
	p := &policy{cfg: c}
	p.denied = slices.Concat(deniedAlways, c.Cluster, c.Service, c.Denied)
	p.router4, p.router6, _ = onePerFamily("", c.Routers)
	p.loop4, p.loop6, _ = onePerFamily("", c.HostLoopback)
	p.refreshHostAddrs()
	return p
}

// refreshHostAddrs looks up the addresses of the host.
func (p *policy) refreshHostAddrs() {
	own, err := p.cfg.HostAddrs()
	if err != nil {
		p.cfg.Log.Warn("host addresses can't be read", "err", err)
		return // the last list stays
	}
	p.hostAddrs.Store(&own)
}

// own are the host's addresses as last looked up.
func (p *policy) own() []netip.Addr {
	if own := p.hostAddrs.Load(); own != nil {
		return *own
	}
	return nil
}

// egress gives the host address that a pod's packet to dst goes to; false: none,
// pods may not go there.
func (p *policy) egress(dst netip.Addr) (netip.Addr, bool) {
	switch {
	case p.loop4.IsValid() && dst == p.loop4:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	case p.loop6.IsValid() && dst == p.loop6:
		return netip.IPv6Loopback(), true
	case contains(p.cfg.Allowed, dst):
		return dst, true
	case !dst.IsValid() || contains(p.denied, dst):
		return netip.Addr{}, false
	}
	return dst, true
}

// egressTCP is egress for a connection, whose port counts too.
func (p *policy) egressTCP(dst netip.AddrPort) (netip.Addr, bool) {
	to, ok := p.egress(dst.Addr())
	if !ok {
		return to, false
	}
	if p.deniesTCP(netip.AddrPortFrom(to, dst.Port())) {
		return netip.Addr{}, false
	}
	return to, true
}

// deniesTCP reports whether nobody may connect to a place by this gateway, pods and
// clients of services alike.
func (p *policy) deniesTCP(to netip.AddrPort) bool {
	for _, d := range p.cfg.DeniedTCP {
		if d.Port() == to.Port() && (d.Addr() == to.Addr() || p.onNode(to.Addr())) {
			return true
		}
	}
	return false
}

// onNode reports whether a belongs to this host or to another node.
func (p *policy) onNode(a netip.Addr) bool {
	return a.IsLoopback() || p.cfg.IsNode != nil && p.cfg.IsNode(a) || slices.Contains(p.own(), a)
}

// router is the node's router address of a family.
func (p *policy) router(v6 bool) (netip.Addr, bool) {
	if v6 {
		return p.router6, p.router6.IsValid()
	}
	return p.router4, p.router4.IsValid()
}

// inCluster reports whether a is a pod's address, of any node.
func (p *policy) inCluster(a netip.Addr) bool { return contains(p.cfg.Cluster, a) }

// outside reports whether a client's address can be kept towards a pod: the
// switch must not know another way to it.
func (p *policy) outside(a netip.Addr) bool {
	if p.cfg.Outside != nil {
		return p.cfg.Outside(a)
	}
	if contains(p.denied, a) {
		return false
	}
	if p.cfg.IsNode != nil && p.cfg.IsNode(a) {
		return false
	}
	if p.cfg.LeadsOut != nil {
		return p.cfg.LeadsOut(a)
	}
	return !slices.Contains(p.own(), a)
}

// sourceFor chooses the address and port with which a client is shown to an
// endpoint; port zero: any. False: the family has no router address.
func (p *policy) sourceFor(client netip.AddrPort, endpoint netip.Addr) (netip.AddrPort, bool) {
	if (p.cfg.IsLocalPod(endpoint) || p.cfg.TakesIngress(endpoint)) && p.outside(client.Addr()) {
		return client, true
	}
	router, ok := p.router(endpoint.Is6())
	return netip.AddrPortFrom(router, 0), ok
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// addrPort joins an address as packets have it with a port.
func addrPort(a *wire.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Netip(), port) }
