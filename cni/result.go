package cni

import (
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"vswitch/control/api"
	"vswitch/internal/netif"
)

// resultOf is what ADD answers: the attachment, behind what earlier plugins of
// the chain made (specification section 5, ADD Success). own is how the daemon has
// the pod find names: earlier plugins and the configuration go before it.
func resultOf(c *conf, netnsPath string, s *netif.Spec, own api.Resolver) *types100.Result {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if c.Prev != nil {
		r.Interfaces, r.IPs, r.Routes, r.DNS = c.Prev.Interfaces, c.Prev.IPs, c.Prev.Routes, c.Prev.DNS
	}
	switch {
	case !r.DNS.IsEmpty():
	case c.DNS != nil:
		r.DNS = *c.DNS
	default:
		r.DNS = types.DNS{
			Nameservers: own.Nameservers, Domain: own.Domain, Search: own.Search, Options: own.Options,
		}
	}
	iface := len(r.Interfaces)
	r.Interfaces = append(r.Interfaces, &types100.Interface{
		Name:    s.Name,
		Mac:     s.MAC.String(),
		Mtu:     s.MTUBytes,
		Sandbox: netnsPath,
	})
	scope := unix.RT_SCOPE_LINK
	for _, a := range s.Addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(iface),
			Address:   *netif.HostNet(a.Addr),
			Gateway:   a.Gateway.AsSlice(),
		})
		r.Routes = append(r.Routes,
			&types.Route{Dst: *netif.HostNet(a.Gateway), Scope: &scope},
			&types.Route{Dst: *netif.EveryNet(a.Gateway), GW: a.Gateway.AsSlice()})
	}
	return r
}
