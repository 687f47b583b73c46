package netif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Everything here runs inside the pod's namespace, on the thread of Namespace.Run.
//
// What a pod sees: one address of each family and no subnet, so every packet
// goes to the gateway; the gateway's MAC is known for good, so it is never asked
// for; no router advertisement is listened to. The interface makes itself no
// IPv6 link-local address: it would need none for this, and the switch binds
// the port to the leased addresses, so all it could send from there (duplicate
// detection, router solicitations) would be dropped and counted.

// Configure brings an interface that is down into the state of s and up. The kernel takes
// packets for its addresses from a moment later on, which AwaitAddresses waits for.
func Configure(s *Spec) error {
	index, err := indexOf(s.Name)
	if err != nil {
		return err
	}
	six := HasIPv6(s.Name)
	if err := configureIPv6(s, six); err != nil {
		return err
	}
	var b batch
	if six { // before the MTU, which may take IPv6 off the interface
		b.set("set addrgenmode none", index, noLinkLocal())
	}
	b.set(fmt.Sprintf("set MAC %s", s.MAC), index, nl.NewRtAttr(unix.IFLA_ADDRESS, s.MAC))
	b.set(fmt.Sprintf("set MTU %d", s.MTUBytes), index, nl.NewRtAttr(unix.IFLA_MTU, number(s.MTUBytes)))
	if s.GSOMaxBytes != 0 {
		b.set(fmt.Sprintf("set gso_max_size %d", s.GSOMaxBytes), index, nl.NewRtAttr(unix.IFLA_GSO_MAX_SIZE, number(s.GSOMaxBytes)))
	}
	if s.TxQueueFrames != 0 {
		b.set(fmt.Sprintf("set txqueuelen %d", s.TxQueueFrames), index, nl.NewRtAttr(unix.IFLA_TXQLEN, number(s.TxQueueFrames)))
	}
	b.leaveOutQdisc(index)
	b.setUp(index)
	for _, a := range s.Addrs {
		b.addAddress(index, addressOf(a))
		b.setNeighbour(gatewayNeigh(index, a.Gateway, s.GatewayMAC))
		for _, r := range s.routesOf(index, a) {
			b.addRoute(&r)
		}
	}
	return b.send()
}

// SetUp brings an interface up.
func SetUp(name string) error {
	index, err := indexOf(name)
	if err != nil {
		return err
	}
	var b batch
	b.setUp(index)
	return b.send()
}

// Repair brings back what somebody took away of an interface that Configure made: its
// being up, addresses, neighbours, routes. It reports whether anything was missing.
func Repair(h *netlink.Handle, s *Spec) (repaired bool, err error) {
	link, err := h.LinkByName(s.Name)
	if err != nil {
		return false, fmt.Errorf("look up: %w", err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return false, fmt.Errorf("set up: %w", err)
		}
		repaired = true
	}
	missing := func(err error) error { // err is of putting there what may be there
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		repaired = true
		return err
	}
	for _, a := range s.Addrs {
		if err := missing(h.AddrAdd(link, addressOf(a))); err != nil {
			return repaired, fmt.Errorf("add address %s: %w", a.Addr, err)
		}
		if err := awaitLocal(a.Addr); err != nil {
			return repaired, err
		}
		if err := h.NeighSet(gatewayNeigh(link.Attrs().Index, a.Gateway, s.GatewayMAC)); err != nil {
			return repaired, fmt.Errorf("add neighbour %s: %w", a.Gateway, err)
		}
		for _, r := range s.routesOf(link.Attrs().Index, a) {
			if err := missing(h.RouteAdd(&r)); err != nil {
				return repaired, fmt.Errorf("add route to %s: %w", r.Dst, err)
			}
		}
	}
	return repaired, nil
}

// configureIPv6 sets what has to be set before the interface is up and netlink can't: six
// says that the kernel has IPv6.
func configureIPv6(s *Spec, six bool) error {
	if !six {
		for _, a := range s.Addrs {
			if a.Is6() {
				return fmt.Errorf("address %s: this kernel has no IPv6", a.Addr)
			}
		}
		return nil
	}
	// The switch drops router advertisements from anybody, so a read-only
	// /proc/sys is no reason to refuse the pod.
	if err := SetSysctl(IPv6Sysctl(s.Name, "accept_ra"), "0"); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	for _, a := range s.Addrs {
		if a.Is6() {
			return SetSysctl(IPv6Sysctl(s.Name, "disable_ipv6"), "0")
		}
	}
	return nil
}

func addressOf(a Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: HostNet(a.Addr)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD // nobody else has it: the daemon leased it
	}
	return addr
}

// routesOf are the routes that come with an address: those of a pod, or to the ranges
// that the spec names, from that address.
func (s *Spec) routesOf(linkIndex int, a Addr) []netlink.Route {
	all := RoutesOf(linkIndex, a)
	if len(s.Routes) == 0 {
		return all
	}
	all = all[:1] // to the gateway
	for _, p := range s.Routes {
		if p.Addr().Is6() == a.Is6() {
			all = append(all, netlink.Route{
				LinkIndex: linkIndex, Gw: a.Gateway.AsSlice(), Src: a.Addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
				Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			})
		}
	}
	return all
}

// RoutesOf are the two routes that come with an address: to the gateway, which
// is on the link though in no subnet of it, and through it to everywhere.
func RoutesOf(linkIndex int, a Addr) []netlink.Route {
	return []netlink.Route{
		{LinkIndex: linkIndex, Dst: HostNet(a.Gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: linkIndex, Dst: EveryNet(a.Gateway), Gw: a.Gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)},
	}
}

func gatewayNeigh(linkIndex int, gateway netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    linkIndex,
		State:        netlink.NUD_PERMANENT,
		IP:           gateway.AsSlice(),
		HardwareAddr: mac,
	}
}

// Exists reports whether the namespace of the calling thread has an interface of that name.
func Exists(name string) (bool, error) {
	_, err := indexOf(name)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// indexOf is the number of an interface.
func indexOf(name string) (int, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look up %s: socket: %w", name, err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr)
	}
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}

// RemoveTAP deletes an interface, if it is there and a TAP; anything else under
// that name isn't ours. Where mac isn't nil it has to be that, too.
func RemoveTAP(h *netlink.Handle, name string, mac net.HardwareAddr) error {
	link, err := h.LinkByName(name)
	if IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if !IsTAP(link) || mac != nil && link.Attrs().HardwareAddr.String() != mac.String() {
		return nil
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// IsTAP reports whether an interface is a TAP device.
func IsTAP(link netlink.Link) bool {
	t, ok := link.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TAP
}

// IsNotFound reports whether err says that there is no such interface.
func IsNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
