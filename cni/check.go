package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
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
	reply, err := call(c.Socket, apiv1.NodeClient.CheckPod, &apiv1.CheckPodRequest{Key: a.key})
	switch {
	case status.Code(err) == codes.NotFound:
		return checkError("the daemon does not know the attachment")
	case err != nil:
		return daemonError("cannot check the attachment", err)
	case !reply.GetAttachment().GetAttached():
		return checkError("the daemon does not have the queues of %s", args.IfName)
	}
	spec, err := specOfCheck(reply)
	if err != nil {
		return err
	}
	listed, err := findListed(c.Prev, args.IfName, args.Netns)
	if err != nil {
		return err
	}
	if listed.iface.Mtu != 0 {
		spec.mtuBytes = listed.iface.Mtu
	}
	if err := listed.agrees(spec); err != nil {
		return err
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return netnsError(args.Netns, err)
	}
	defer ns.Close()
	return ns.do(func(h *netlink.Handle) error {
		if err := checkLoopback(hasIPv6(loopback)); err != nil {
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
func (l *listing) agrees(s *linkSpec) error {
	if l.iface.Mac != "" && l.iface.Mac != s.mac.String() {
		return checkError("%s: the daemon has MAC %s, prevResult %s", s.name, s.mac, l.iface.Mac)
	}
	for _, ip := range l.ips {
		if !s.hasAddr(ip) {
			return checkError("%s: the daemon has not leased %s, which prevResult lists", s.name, ip.String())
		}
	}
	return nil
}

func (s *linkSpec) hasAddr(ip net.IPNet) bool {
	for _, a := range s.addrs {
		if hostNet(a.addr).String() == ip.String() {
			return true
		}
	}
	return false
}

// checkLink compares the pod's kernel with s. Of the routes that configureLink
// makes, those are expected that prevResult still lists.
func checkLink(h *netlink.Handle, s *linkSpec, listed []listedRoute) error {
	link, err := h.LinkByName(s.name)
	if isNotFound(err) {
		return checkError("%s: no such interface", s.name)
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", s.name, err)
	}
	attrs := link.Attrs()
	switch {
	case !isTAP(link):
		return checkError("%s: not a TAP but a %s", s.name, link.Type())
	case attrs.HardwareAddr.String() != s.mac.String():
		return checkError("%s: MAC is %s, want %s", s.name, attrs.HardwareAddr, s.mac)
	case attrs.MTU != s.mtuBytes:
		return checkError("%s: MTU is %d, want %d", s.name, attrs.MTU, s.mtuBytes)
	case attrs.Flags&net.FlagUp == 0:
		return checkError("%s: down", s.name)
	case attrs.RawFlags&unix.IFF_RUNNING == 0:
		return checkError("%s: no carrier: nobody has its queues open", s.name)
	}
	addrs, err := list(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", s.name, err)
	}
	neighs, err := list(func() ([]netlink.Neigh, error) { return h.NeighList(attrs.Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("neighbours of %s: %w", s.name, err)
	}
	routes, err := list(func() ([]netlink.Route, error) { return h.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("routes of %s: %w", s.name, err)
	}
	for _, a := range s.addrs {
		if !hasAddress(addrs, a) {
			return checkError("%s: address %s is missing", s.name, a.addr)
		}
		if !hasNeighbour(neighs, a, s.gatewayMAC) {
			return checkError("%s: neighbour %s at %s is missing", s.name, a.gateway, s.gatewayMAC)
		}
		for _, want := range routesOf(attrs.Index, a) {
			if isListed(listed, want) && !hasRoute(routes, want) {
				return checkError("%s: route to %s is missing", s.name, want.Dst)
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

func hasAddress(addrs []netlink.Addr, a ifaceAddr) bool {
	for _, have := range addrs {
		if have.IPNet.String() == hostNet(a.addr).String() && have.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			return true
		}
	}
	return false
}

func hasNeighbour(neighs []netlink.Neigh, a ifaceAddr, mac net.HardwareAddr) bool {
	for _, n := range neighs {
		if n.State&netlink.NUD_PERMANENT != 0 && n.IP.Equal(a.gateway.AsSlice()) && n.HardwareAddr.String() == mac.String() {
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
