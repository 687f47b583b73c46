package node

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"vswitch/internal/dns"
)

// hostResolvers is where the host says whom to ask (resolv.conf(5)).
const hostResolvers = "/etc/resolv.conf"

// followResolvers finds out whom to ask for names that are not the cluster's.
func (n *node) followResolvers() {
	c := &n.cfg.DNS
	if len(c.Upstream) > 0 {
		n.resolvers = func() []netip.AddrPort { return c.Upstream }
		return
	}
	n.resolvers = dns.NewResolvConf(hostResolvers, n.readResolvers, c.Addrs, n.log).Servers
}

// readResolvers reads the file of the host's resolvers. One that was put in the place of
// another is no longer open to a process that was confined to the first: the keeper opens it.
func (n *node) readResolvers(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrPermission) || n.opt.Keeper == nil {
		return text, err
	}
	f, err := n.opt.Keeper.OpenResolvers()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// isNameServer reports whether pods' questions go to an address, by way of this
// node's own server or without it.
func (n *node) isNameServer(a netip.Addr) bool {
	return slices.Contains(n.cfg.DNS.Addrs, a) ||
		slices.ContainsFunc(n.resolvers(), func(r netip.AddrPort) bool { return r.Addr() == a })
}

// openDNS makes the server for pods' questions, nil if there is to be none. Its
// names are the controller's; the gateway gives it its questions.
func (n *node) openDNS() (*dns.Server, error) {
	c := &n.cfg.DNS
	if len(c.Addrs) == 0 {
		return nil, nil
	}
	forward := dns.NewForwarder(dns.ForwarderConfig{Resolvers: n.resolvers, Log: n.log})
	n.onClose(func() error { forward.Close(); return nil })
	return dns.New(dns.Config{
		Domain: c.Domain, Zone: n.controller.Names(), Forward: forward,
		Local: slices.Concat(n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.LBCIDR),
	})
}
