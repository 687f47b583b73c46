package cni

import (
	"fmt"
	"net"
	"net/netip"

	apiv1 "vswitch/control/api/v1"
)

// linkSpec is how the pod's interface is to be: the daemon's decisions, decoded.
type linkSpec struct {
	name          string
	mac           net.HardwareAddr
	mtuBytes      int
	addrs         []ifaceAddr
	gatewayMAC    net.HardwareAddr
	queues        int
	plain         bool
	gsoMaxBytes   int // 0: the kernel's
	txQueueFrames int // 0: the kernel's
}

// ifaceAddr is one address of the pod, a /32 or /128, and its gateway.
type ifaceAddr struct {
	addr    netip.Addr
	gateway netip.Addr
}

func (a ifaceAddr) is6() bool { return a.addr.Is6() }

// minMTU6Bytes is the least MTU that IPv6 works with (RFC 8200 section 5): with
// less, Linux takes IPv6 off the interface.
const minMTU6Bytes = 1280

func specOfReply(ifname string, r *apiv1.AddPodReply) (*linkSpec, error) {
	s := &linkSpec{
		name:          ifname,
		mtuBytes:      int(r.GetMtuBytes()),
		queues:        int(r.GetQueues()),
		plain:         r.GetPlain(),
		gsoMaxBytes:   int(r.GetGsoMaxBytes()),
		txQueueFrames: int(r.GetTxQueueFrames()),
	}
	if s.queues < 1 {
		return nil, fmt.Errorf("daemon's answer: %d queues", s.queues)
	}
	return s, s.decode(r.GetMac(), r.GetGatewayMac(), r.GetIps(), r.GetGateways())
}

func specOfCheck(r *apiv1.CheckPodReply) (*linkSpec, error) {
	a := r.GetAttachment()
	s := &linkSpec{name: a.GetKey().GetIfname(), mtuBytes: int(a.GetMtuBytes())}
	return s, s.decode(a.GetMac(), r.GetGatewayMac(), a.GetIps(), r.GetGateways())
}

// decode turns text into addresses. The daemon is trusted, but a mismatch of
// versions should be told plainly.
func (s *linkSpec) decode(mac, gatewayMAC string, ips, gateways []string) (err error) {
	fail := func(what string, err error) error { return fmt.Errorf("daemon's answer: %s: %w", what, err) }
	if s.mac, err = net.ParseMAC(mac); err != nil {
		return fail("mac", err)
	}
	if s.gatewayMAC, err = net.ParseMAC(gatewayMAC); err != nil {
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
		case p.Addr().Is6() && s.mtuBytes < minMTU6Bytes:
			return fail("mtu_bytes", fmt.Errorf("%d is less than IPv6 needs, %d", s.mtuBytes, minMTU6Bytes))
		}
		s.addrs = append(s.addrs, ifaceAddr{addr: p.Addr(), gateway: g})
	}
	if len(s.addrs) == 0 {
		return fail("ips", fmt.Errorf("none"))
	}
	return nil
}

// hostNet is an address alone, as netlink and CNI write it.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// everyNet is the destination of the default route of a's family.
func everyNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}
