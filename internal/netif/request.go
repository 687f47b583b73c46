package netif

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What Configure asks of the kernel (rtnetlink(7), include/uapi/linux/if_link.h).

// set asks for another attribute of an interface.
func (b *batch) set(what string, index int, attribute nl.NetlinkRequestData) {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	b.add(what, unix.RTM_SETLINK, 0, m, attribute)
}

func (b *batch) setUp(index int) {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	b.add("set up", unix.RTM_SETLINK, 0, m)
}

// noLinkLocal has the interface make itself no IPv6 address.
func noLinkLocal() nl.NetlinkRequestData {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_NONE})
	return spec
}

// leaveOutQdisc has packets go straight to the TAP's queues, as a veth's do to its peer.
// The kernel's default has nothing to queue, since a TAP takes every packet or drops it,
// and is costly: a device of several queues is one of 256 to the kernel (drivers/net/tun.c,
// MAX_TAP_QUEUES), and for each, used or not, it would get 24 KB of pfifo_fast as it is set
// up. A kernel without traffic control has neither.
func (b *batch) leaveOutQdisc(index int) {
	m := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: netlink.HANDLE_ROOT}
	c := b.add("set no queueing discipline", unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m,
		nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("noqueue")))
	c.spare = []unix.Errno{unix.EOPNOTSUPP, unix.ENOENT}
}

func (b *batch) addAddress(index int, a *netlink.Addr) {
	ip, family := addressBytes(a.IP)
	bits, _ := a.Mask.Size()
	m := nl.NewIfAddrmsg(family)
	m.Index, m.Prefixlen, m.IfAddrmsg.Flags = uint32(index), uint8(bits), uint8(a.Flags)
	b.add(fmt.Sprintf("add address %s", a.IP), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m,
		nl.NewRtAttr(unix.IFA_LOCAL, ip), nl.NewRtAttr(unix.IFA_ADDRESS, ip))
}

func (b *batch) setNeighbour(n *netlink.Neigh) {
	ip, family := addressBytes(n.IP)
	m := &netlink.Ndmsg{Family: uint8(family), Index: uint32(n.LinkIndex), State: uint16(n.State)}
	b.add(fmt.Sprintf("add neighbour %s", n.IP), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m,
		nl.NewRtAttr(netlink.NDA_DST, ip), nl.NewRtAttr(netlink.NDA_LLADDR, n.HardwareAddr))
}

func (b *batch) addRoute(r *netlink.Route) {
	dst, family := addressBytes(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	m := nl.NewRtMsg() // of the main table
	m.Family, m.Dst_len, m.Scope, m.Flags = uint8(family), uint8(bits), uint8(r.Scope), uint32(r.Flags)
	parts := []nl.NetlinkRequestData{m, nl.NewRtAttr(unix.RTA_DST, dst), nl.NewRtAttr(unix.RTA_OIF, number(r.LinkIndex))}
	if r.Gw != nil {
		gateway, _ := addressBytes(r.Gw)
		parts = append(parts, nl.NewRtAttr(unix.RTA_GATEWAY, gateway))
	}
	if r.Src != nil {
		source, _ := addressBytes(r.Src)
		parts = append(parts, nl.NewRtAttr(unix.RTA_PREFSRC, source))
	}
	b.add(fmt.Sprintf("add route to %s", r.Dst), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, parts...)
}

// addressBytes is an address as the kernel writes it, and its family.
func addressBytes(ip net.IP) ([]byte, int) {
	if four := ip.To4(); four != nil {
		return four, unix.AF_INET
	}
	return ip, unix.AF_INET6
}

func number(v int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }
