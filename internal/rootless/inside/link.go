package inside

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/internal/netif"
	"vswitch/internal/rootless/plan"
	"vswitch/tap"
	"vswitch/vswitch"
)

// configure makes the TAP and all that belongs to it. Its gateway is known for good:
// there is nobody on this wire to ask.
func configure(p *plan.Plan, s *Setup) (*tap.Device, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	if err := raise(nl, "lo"); err != nil {
		return nil, err
	}
	// One made beforehand, as RootlessKit does it, has no queues but its maker's.
	if err := netif.RemoveTAP(nl, p.Interface, nil); err != nil {
		return nil, err
	}
	// Not persistent: it is gone when nobody outside holds its queues.
	dev, err := tap.Create(tap.Config{Name: p.Interface, Queues: p.Queues})
	if err != nil {
		return nil, err
	}
	if err := configureLink(nl, p, s); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

func configureLink(nl *netlink.Handle, p *plan.Plan, s *Setup) error {
	spec := &netif.Spec{
		Name: p.Interface, MAC: net.HardwareAddr(p.MAC[:]), MTUBytes: p.MTUBytes,
		GatewayMAC: net.HardwareAddr(vswitch.GatewayMAC[:]), Queues: p.Queues,
	}
	nets := p.Nets
	if !netif.HasIPv6(p.Interface) { // nor has the kernel
		nets = slices.DeleteFunc(slices.Clone(nets), func(n plan.Net) bool { return n.Addr.Is6() })
	}
	for _, n := range nets {
		if !s.Bare || n.Addr.Is6() {
			spec.Addrs = append(spec.Addrs, netif.Addr{Addr: n.Addr, Gateway: n.Router})
		}
	}
	if err := netif.Configure(spec); err != nil {
		return err
	}
	if err := netif.AwaitAddresses(spec); err != nil {
		return err
	}
	link, err := nl.LinkByName(p.Interface)
	if err != nil {
		return err
	}
	for _, n := range nets {
		if err := setNeighbours(nl, link, n, spec.GatewayMAC); err != nil {
			return err
		}
	}
	return nil
}

// setNeighbours says where the two are that a whole network's route would have the
// kernel ask for on the wire.
func setNeighbours(nl *netlink.Handle, link netlink.Link, n plan.Net, mac net.HardwareAddr) error {
	for _, a := range []netip.Addr{n.Router, n.DNS} {
		err := nl.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", a, err)
		}
	}
	return nil
}

func raise(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// openToAll gives the namespace's own users what its root has anyway: low ports, and
// pings without privilege. A /proc/sys that is read-only is no reason to fail.
func openToAll() error {
	for path, values := range map[string][]string{
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": {"0"},
		// As many groups as are mapped: root's at least.
		"/proc/sys/net/ipv4/ping_group_range": {"0 2147483647", "0 65535", "0 0"},
	} {
		var err error
		for _, v := range values {
			if err = netif.SetSysctl(path, v); err == nil {
				break
			}
		}
		if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return nil
}
