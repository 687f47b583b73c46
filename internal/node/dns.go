package node

import (
	"net/netip"
	"slices"

	"vswitch/internal/dns"
)

// hostResolvers is where the host says whom to ask (resolv.conf(5)).
const hostResolvers = "/etc/resolv.conf"

// openDNS makes the server for pods' questions, nil if there is to be none. Its
// names are the controller's; the gateway gives it its questions.
func (n *node) openDNS() (*dns.Server, error) {
	c := &n.cfg.DNS
	if len(c.Addrs) == 0 {
		return nil, nil
	}
	resolvers := func() []netip.AddrPort { return c.Upstream }
	if len(c.Upstream) == 0 {
		resolvers = dns.NewResolvConf(hostResolvers, c.Addrs, n.log).Servers
	}
	forward := dns.NewForwarder(dns.ForwarderConfig{Resolvers: resolvers, Log: n.log})
	n.onClose(func() error { forward.Close(); return nil })
	return dns.New(dns.Config{
		Domain: c.Domain, Zone: n.controller.Names(), Forward: forward,
		Local: slices.Concat(n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.LBCIDR),
	})
}
