package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/control/api"
	"vswitch/internal/netif"
)

// check is CNI CHECK: the daemon knows the attachment and has its queues, and
// what prevResult lists of it is in the pod's kernel. What another plugin of the
// chain may have changed since (the MTU, routes) is judged by prevResult; what
// the switch insists on (addresses, MAC) by the daemon's record.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData, strict)
	if err != nil {
		return err
	}
	a, err := parseAttachment(args, c)
	if err != nil {
		return err
	}
	if c.Prev == nil {
		return configError("prevResult: missing")
	}
	reply, err := call(c.Socket, api.Client.CheckPod, &api.CheckPodRequest{Key: a.key})
	switch {
	case api.CodeOf(err) == api.NotFound:
		return checkError("the daemon does not know the attachment")
	case err != nil:
		return daemonError("cannot check the attachment", err)
	case !reply.Attachment.Attached:
		return checkError("the daemon does not have the queues of %s", args.IfName)
	}
	spec, err := netif.SpecOfCheck(reply)
	if err != nil {
		return err
	}
	listed, err := findListed(c.Prev, args.IfName, args.Netns)
	if err != nil {
		return err
	}
	if listed.iface.Mtu != 0 {
		spec.MTUBytes = listed.iface.Mtu
	}
	if err := listed.agrees(spec); err != nil {
		return err
	}
	ns, err := netif.OpenNamespace(args.Netns)
	if err != nil {
		return netnsError(args.Netns, err)
	}
	defer ns.Close()
	return ns.Do(func(h *netlink.Handle) error {
		if err := checkLoopback(netif.HasIPv6(loopback)); err != nil {
			return checkError("%s: %v", loopback, err)
		}
		return checkLink(h, spec, listed.routes)
	})
}

// listing is what prevResult says of our interface.
type listing struct {
	iface  *types100.Interface
	ips    []net.IPNet
	routes []listedRoute
}

type listedRoute struct {
	dst net.IPNet
	gw  net.IP // nil: none
}

// findListed picks the interface, its addresses and every route out of a result.
func findListed(prev *types100.Result, ifname, sandbox string) (*listing, error) {
	l := &listing{}
	index := -1
	for i, iface := range prev.Interfaces {
		if iface != nil && iface.Name == ifname && iface.Sandbox == sandbox {
			l.iface, index = iface, i
		}
	}
	if l.iface == nil {
		return nil, configError("prevResult: no interface %q in %q", ifname, sandbox)
	}
	for _, ip := range prev.IPs {
		if ip != nil && ip.Interface != nil && *ip.Interface == index {
			l.ips = append(l.ips, ip.Address)
		}
	}
	for _, r := range prev.Routes {
		if r != nil {
			l.routes = append(l.routes, listedRoute{dst: r.Dst, gw: r.GW})
		}
	}
	return l, nil
}

// agrees says whether the daemon's record is of what prevResult lists: a lease
// may have gone to another container since.
func (l *listing) agrees(s *netif.Spec) error {
	if l.iface.Mac != "" && l.iface.Mac != s.MAC.String() {
		return checkError("%s: the daemon has MAC %s, prevResult %s", s.Name, s.MAC, l.iface.Mac)
	}
	for _, ip := range l.ips {
		if !hasAddr(s, ip) {
			return checkError("%s: the daemon has not leased %s, which prevResult lists", s.Name, ip.String())
		}
	}
	return nil
}

func hasAddr(s *netif.Spec, ip net.IPNet) bool {
	for _, a := range s.Addrs {
		if netif.HostNet(a.Addr).String() == ip.String() {
			return true
		}
	}
	return false
}

// checkLink compares the pod's kernel with s. Of the routes that configureLink
// makes, those are expected that prevResult still lists.
func checkLink(h *netlink.Handle, s *netif.Spec, listed []listedRoute) error {
	link, err := h.LinkByName(s.Name)
	if netif.IsNotFound(err) {
		return checkError("%s: no such interface", s.Name)
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", s.Name, err)
	}
	attrs := link.Attrs()
	switch {
	case !netif.IsTAP(link):
		return checkError("%s: not a TAP but a %s", s.Name, link.Type())
	case attrs.HardwareAddr.String() != s.MAC.String():
		return checkError("%s: MAC is %s, want %s", s.Name, attrs.HardwareAddr, s.MAC)
	case attrs.MTU != s.MTUBytes:
		return checkError("%s: MTU is %d, want %d", s.Name, attrs.MTU, s.MTUBytes)
	case attrs.Flags&net.FlagUp == 0:
		return checkError("%s: down", s.Name)
	case attrs.RawFlags&unix.IFF_RUNNING == 0:
		return checkError("%s: no carrier: nobody has its queues open", s.Name)
	}
	addrs, err := list(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", s.Name, err)
	}
	neighs, err := list(func() ([]netlink.Neigh, error) { return h.NeighList(attrs.Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("neighbours of %s: %w", s.Name, err)
	}
	routes, err := list(func() ([]netlink.Route, error) { return h.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("routes of %s: %w", s.Name, err)
	}
	for _, a := range s.Addrs {
		if !hasAddress(addrs, a) {
			return checkError("%s: address %s is missing", s.Name, a.Addr)
		}
		if !hasNeighbour(neighs, a, s.GatewayMAC) {
			return checkError("%s: neighbour %s at %s is missing", s.Name, a.Gateway, s.GatewayMAC)
		}
		for _, want := range netif.RoutesOf(attrs.Index, a) {
			if isListed(listed, want) && !hasRoute(routes, want) {
				return checkError("%s: route to %s is missing", s.Name, want.Dst)
			}
		}
	}
	return nil
}

// list repeats a netlink dump that changes under it broke.
func list[T any](dump func() ([]T, error)) ([]T, error) {
	const tries = 10
	var all []T
	var err error
	for range tries {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func hasAddress(addrs []netlink.Addr, a netif.Addr) bool {
	for _, have := range addrs {
		if have.IPNet.String() == netif.HostNet(a.Addr).String() && have.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			return true
		}
	}
	return false
}

func hasNeighbour(neighs []netlink.Neigh, a netif.Addr, mac net.HardwareAddr) bool {
	for _, n := range neighs {
		if n.State&netlink.NUD_PERMANENT != 0 && n.IP.Equal(a.Gateway.AsSlice()) && n.HardwareAddr.String() == mac.String() {
			return true
		}
	}
	return false
}

func isListed(listed []listedRoute, r netlink.Route) bool {
	for _, l := range listed {
		if l.dst.String() == r.Dst.String() && l.gw.Equal(r.Gw) {
			return true
		}
	}
	return false
}

func hasRoute(routes []netlink.Route, want netlink.Route) bool {
	for _, r := range routes {
		// A default route comes back without a destination from some kernels.
		dst := r.Dst
		if dst == nil && r.Gw != nil {
			dst = want.Dst
		}
		if dst != nil && dst.String() == want.Dst.String() && r.Gw.Equal(want.Gw) {
			return true
		}
	}
	return false
}
