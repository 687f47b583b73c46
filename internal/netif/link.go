package netif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Everything here runs inside the pod's namespace, on the thread of Namespace.Do.
//
// What a pod sees: one address of each family and no subnet, so every packet
// goes to the gateway; the gateway's MAC is known for good, so it is never asked
// for; no router advertisement is listened to. The interface makes itself no
// IPv6 link-local address: it would need none for this, and the switch binds
// the port to the leased addresses, so all it could send from there (duplicate
// detection, router solicitations) would be dropped and counted.

// Configure brings an interface that is down into the state of s and up.
func Configure(h *netlink.Handle, s *Spec) error {
	link, err := h.LinkByName(s.Name)
	if err != nil {
		return fmt.Errorf("look up: %w", err)
	}
	if err := h.LinkSetHardwareAddr(link, s.MAC); err != nil {
		return fmt.Errorf("set MAC %s: %w", s.MAC, err)
	}
	if err := h.LinkSetMTU(link, s.MTUBytes); err != nil {
		return fmt.Errorf("set MTU %d: %w", s.MTUBytes, err)
	}
	if s.GSOMaxBytes != 0 {
		if err := h.LinkSetGSOMaxSize(link, s.GSOMaxBytes); err != nil {
			return fmt.Errorf("set gso_max_size %d: %w", s.GSOMaxBytes, err)
		}
	}
	if s.TxQueueFrames != 0 {
		if err := h.LinkSetTxQLen(link, s.TxQueueFrames); err != nil {
			return fmt.Errorf("set txqueuelen %d: %w", s.TxQueueFrames, err)
		}
	}
	if err := leaveOutQdisc(h, link); err != nil {
		return fmt.Errorf("set no queueing discipline: %w", err)
	}
	if err := configureIPv6(h, link, s); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, a := range s.Addrs {
		if err := addAddress(h, link, s, a); err != nil {
			return err
		}
	}
	for _, a := range s.Addrs {
		if err := waitLocal(h, a.Addr); err != nil {
			return err
		}
	}
	return nil
}

// leaveOutQdisc has packets go straight to the TAP's queues, as a veth's do to its peer.
// The kernel's default has nothing to queue, since a TAP takes every packet or drops it,
// and is costly: a device of several queues is one of 256 to the kernel (drivers/net/tun.c,
// MAX_TAP_QUEUES), and for each, used or not, it would get 24 KB of pfifo_fast as it is set
// up. A kernel without traffic control has neither.
func leaveOutQdisc(h *netlink.Handle, link netlink.Link) error {
	err := h.QdiscReplace(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT},
		QdiscType:  "noqueue",
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
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
		if err := waitLocal(h, a.Addr); err != nil {
			return repaired, err
		}
		if err := h.NeighSet(gatewayNeigh(link, a.Gateway, s.GatewayMAC)); err != nil {
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

// localTimeout is far beyond what waitLocal waits for, a work item of the kernel.
const localTimeout = 5 * time.Second

// waitLocal waits until the kernel takes packets to an address. Linux enters the
// local route of an IPv6 address that is spared duplicate detection from a
// workqueue (net/ipv6/addrconf.c, addrconf_dad_completed), a moment after the
// address can be seen and sent from; an answer that comes first is lost.
func waitLocal(h *netlink.Handle, addr netip.Addr) error {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Since(start) > localTimeout {
			return errors.Join(fmt.Errorf("address %s: the kernel takes nothing for it after %v", addr, localTimeout), err)
		}
	}
}

// configureIPv6 sets what has to be set before the interface is up.
func configureIPv6(h *netlink.Handle, link netlink.Link, s *Spec) error {
	if !HasIPv6(s.Name) {
		for _, a := range s.Addrs {
			if a.Is6() {
				return fmt.Errorf("address %s: this kernel has no IPv6", a.Addr)
			}
		}
		return nil
	}
	if err := h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("set addrgenmode none: %w", err)
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

// addAddress gives a link that is up an address, its gateway as a neighbour for
// good, and the default route of its family.
func addAddress(h *netlink.Handle, link netlink.Link, s *Spec, a Addr) error {
	if err := h.AddrAdd(link, addressOf(a)); err != nil {
		return fmt.Errorf("add address %s: %w", a.Addr, err)
	}
	if err := h.NeighSet(gatewayNeigh(link, a.Gateway, s.GatewayMAC)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", a.Gateway, err)
	}
	for _, r := range s.routesOf(link.Attrs().Index, a) {
		if err := h.RouteAdd(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", r.Dst, err)
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

func gatewayNeigh(link netlink.Link, gateway netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    link.Attrs().Index,
		State:        netlink.NUD_PERMANENT,
		IP:           gateway.AsSlice(),
		HardwareAddr: mac,
	}
}

// Exists reports whether the namespace has an interface of that name.
func Exists(h *netlink.Handle, name string) (bool, error) {
	_, err := h.LinkByName(name)
	if IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
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
