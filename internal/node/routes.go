package node

import (
	"net/netip"

	"vswitch/control"
	"vswitch/internal/config"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
)

// routerAddrs are the node's own addresses in its pod CIDRs.
func routerAddrs(podCIDRs []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range podCIDRs {
		out = append(out, control.RouterAddr(p))
	}
	return out
}

// programOwnRoutes sets the routes that follow from the node itself. The world
// goes last: until what is refused is in place, nothing leads there.
func programOwnRoutes(t *fib.Table, c *config.Config, podCIDRs []netip.Prefix) {
	for _, p := range c.ClusterCIDR {
		t.SetPrefix(p, fib.NextHop{Kind: fib.Unreachable})
	}
	for _, p := range podCIDRs {
		t.SetPrefix(p, fib.NextHop{Kind: fib.Unreachable})
	}
	for _, p := range c.ServiceCIDR {
		t.SetPrefix(p, fib.NextHop{Kind: fib.VIP})
	}
	for _, a := range append(routerAddrs(podCIDRs), vswitch.GatewayIPv4, vswitch.GatewayIPv6) {
		t.SetHost(a, fib.NextHop{Kind: fib.Router})
	}
	for _, a := range c.Underlay {
		t.SetHost(a, fib.NextHop{Kind: fib.Node})
	}
	for _, world := range []string{"0.0.0.0/0", "::/0"} {
		t.SetPrefix(netip.MustParsePrefix(world), fib.NextHop{Kind: fib.Egress})
	}
}
