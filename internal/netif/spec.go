package netif

import (
	"fmt"
	"net"
	"net/netip"

	"vswitch/control/api"
)

// Spec is how an interface is to be: the daemon's decisions, decoded.
type Spec struct {
	Name          string
	MAC           net.HardwareAddr
	MTUBytes      int
	Addrs         []Addr
	GatewayMAC    net.HardwareAddr
	Queues        int
	Plain         bool
	GSOMaxBytes   int            // 0: the kernel's
	TxQueueFrames int            // 0: the kernel's
	Routes        []netip.Prefix // to the gateway; none: everything
}

// Addr is one address of the interface, a /32 or /128, and its gateway.
type Addr struct {
	Addr    netip.Addr
	Gateway netip.Addr
}

// Is6 reports whether it is IPv6's.
func (a Addr) Is6() bool { return a.Addr.Is6() }

// minMTU6Bytes is the least MTU that IPv6 works with (RFC 8200 section 5): with
// less, Linux takes IPv6 off the interface.
const minMTU6Bytes = 1280

// SpecOfReply decodes what the daemon says a new interface is to be like. An error says
// which field is wrong.
func SpecOfReply(ifname string, r *api.AddPodReply) (*Spec, error) {
	s := &Spec{
		Name:          ifname,
		MTUBytes:      int(r.MTUBytes),
		Queues:        int(r.Queues),
		Plain:         r.Plain,
		GSOMaxBytes:   int(r.GSOMaxBytes),
		TxQueueFrames: int(r.TxQueueFrames),
	}
	if s.Queues < 1 {
		return nil, fmt.Errorf("daemon's answer: %d queues", s.Queues)
	}
	return s, s.decode(r.MAC, r.GatewayMAC, r.IPs, r.Gateways, r.Routes)
}

// SpecOfCheck decodes what the daemon says one that exists is to be like, as far as that
// can be looked at: without queues, and limits that only making it sets.
func SpecOfCheck(r *api.CheckPodReply) (*Spec, error) {
	a := &r.Attachment
	s := &Spec{Name: a.Key.Ifname, MTUBytes: int(a.MTUBytes)}
	return s, s.decode(a.MAC, r.GatewayMAC, a.IPs, r.Gateways, r.Routes)
}

// decode turns text into addresses. The daemon is trusted, but a mismatch of
// versions should be told plainly.
func (s *Spec) decode(mac, gatewayMAC string, ips, gateways, routes []string) (err error) {
	fail := func(what string, err error) error { return fmt.Errorf("daemon's answer: %s: %w", what, err) }
	if s.MAC, err = net.ParseMAC(mac); err != nil {
		return fail("mac", err)
	}
	if s.GatewayMAC, err = net.ParseMAC(gatewayMAC); err != nil {
		return fail("gateway_mac", err)
	}
	gatewayOf := map[bool]netip.Addr{} // by Is6
	for _, text := range gateways {
		g, err := netip.ParseAddr(text)
		if err != nil {
			return fail("gateways", err)
		}
		gatewayOf[g.Is6()] = g
	}
	for _, text := range ips {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fail("ips", err)
		}
		g, ok := gatewayOf[p.Addr().Is6()]
		switch {
		case !p.IsSingleIP():
			return fail("ips", fmt.Errorf("%s is more than one address", p))
		case !ok:
			return fail("ips", fmt.Errorf("no gateway for %s", p))
		case p.Addr().Is6() && s.MTUBytes < minMTU6Bytes:
			return fail("mtu_bytes", fmt.Errorf("%d is less than IPv6 needs, %d", s.MTUBytes, minMTU6Bytes))
		}
		s.Addrs = append(s.Addrs, Addr{Addr: p.Addr(), Gateway: g})
	}
	for _, text := range routes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fail("routes", err)
		}
		s.Routes = append(s.Routes, p)
	}
	if len(s.Addrs) == 0 {
		return fail("ips", fmt.Errorf("none"))
	}
	return nil
}

// HostNet is an address alone, as netlink and CNI write it.
func HostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// EveryNet is the destination of the default route of a's family.
func EveryNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}
