package cni

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

// Everything here runs inside the pod's namespace, on the thread of podNetns.do.
//
// What a pod sees: one address of each family and no subnet, so every packet
// goes to the gateway; the gateway's MAC is known for good, so it is never asked
// for; no router advertisement is listened to. The interface makes itself no
// IPv6 link-local address: it would need none for this, and the switch binds
// the port to the leased addresses, so all it could send from there (duplicate
// detection, router solicitations) would be dropped and counted.

// configureLink brings an interface that is down into the state of s and up.
func configureLink(h *netlink.Handle, s *linkSpec) error {
	link, err := h.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("look up: %w", err)
	}
	if err := h.LinkSetHardwareAddr(link, s.mac); err != nil {
		return fmt.Errorf("set MAC %s: %w", s.mac, err)
	}
	if err := h.LinkSetMTU(link, s.mtuBytes); err != nil {
		return fmt.Errorf("set MTU %d: %w", s.mtuBytes, err)
	}
	if s.gsoMaxBytes != 0 {
		if err := h.LinkSetGSOMaxSize(link, s.gsoMaxBytes); err != nil {
			return fmt.Errorf("set gso_max_size %d: %w", s.gsoMaxBytes, err)
		}
	}
	if s.txQueueFrames != 0 {
		if err := h.LinkSetTxQLen(link, s.txQueueFrames); err != nil {
			return fmt.Errorf("set txqueuelen %d: %w", s.txQueueFrames, err)
		}
	}
	if err := configureIPv6(h, link, s); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, a := range s.addrs {
		if err := addAddress(h, link, s, a); err != nil {
			return err
		}
	}
	for _, a := range s.addrs {
		if err := waitLocal(h, a.addr); err != nil {
			return err
		}
	}
	return nil
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
func configureIPv6(h *netlink.Handle, link netlink.Link, s *linkSpec) error {
	if !hasIPv6(s.name) {
		for _, a := range s.addrs {
			if a.is6() {
				return fmt.Errorf("address %s: this kernel has no IPv6", a.addr)
			}
		}
		return nil
	}
	if err := h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("set addrgenmode none: %w", err)
	}
	// The switch drops router advertisements from anybody, so a read-only
	// /proc/sys is no reason to refuse the pod.
	if err := setSysctl(ipv6Sysctl(s.name, "accept_ra"), "0"); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	for _, a := range s.addrs {
		if a.is6() {
			return setSysctl(ipv6Sysctl(s.name, "disable_ipv6"), "0")
		}
	}
	return nil
}

// addAddress gives a link that is up an address, its gateway as a neighbour for
// good, and the default route of its family.
func addAddress(h *netlink.Handle, link netlink.Link, s *linkSpec, a ifaceAddr) error {
	addr := &netlink.Addr{IPNet: hostNet(a.addr)}
	if a.is6() {
		addr.Flags = unix.IFA_F_NODAD // nobody else has it: the daemon leased it
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a.addr, err)
	}
	if err := h.NeighSet(gatewayNeigh(link, a.gateway, s.gatewayMAC)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", a.gateway, err)
	}
	for _, r := range routesOf(link.Attrs().Index, a) {
		if err := h.RouteAdd(&r); err != nil {
			return fmt.Errorf("add route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// routesOf are the two routes that come with an address: to the gateway, which
// is on the link though in no subnet of it, and through it to everywhere.
func routesOf(linkIndex int, a ifaceAddr) []netlink.Route {
	return []netlink.Route{
		{LinkIndex: linkIndex, Dst: hostNet(a.gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: linkIndex, Dst: everyNet(a.gateway), Gw: a.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)},
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

// linkExists reports whether the namespace has an interface of that name.
func linkExists(h *netlink.Handle, name string) (bool, error) {
	_, err := h.LinkByName(name)
	if isNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// removeTAP deletes an interface, if it is there and a TAP; anything else under
// that name isn't ours. Where mac isn't nil it has to be that, too.
func removeTAP(h *netlink.Handle, name string, mac net.HardwareAddr) error {
	link, err := h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if !isTAP(link) || mac != nil && link.Attrs().HardwareAddr.String() != mac.String() {
		return nil
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func isTAP(link netlink.Link) bool {
	t, ok := link.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TAP
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
