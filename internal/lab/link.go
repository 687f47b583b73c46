package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// connect joins two namespaces by a veth pair whose ends are up.
func connect(a *Namespace, aName string, b *Namespace, bName string, mtuBytes int, offload Offload) error {
	link := netlink.NewVeth(netlink.LinkAttrs{Name: aName, MTU: mtuBytes, TxQLen: -1})
	link.PeerName, link.PeerMTU = bName, uint32(mtuBytes)
	link.PeerNamespace = netlink.NsFd(b.handle.Fd())
	if err := a.nl.LinkAdd(link); err != nil {
		return fmt.Errorf("lab: veth %s/%s to %s/%s: %w", a.Name, aName, b.Name, bName, err)
	}
	for _, end := range []struct {
		n    *Namespace
		name string
	}{{a, aName}, {b, bName}} {
		if err := end.n.SetOffload(end.name, offload); err != nil {
			return err
		}
		if err := end.n.up(end.name); err != nil {
			return err
		}
	}
	return nil
}

// noDAD makes every link-local address of links made from now on usable at
// once: no pod of a test waits two seconds for its router.
func (n *Namespace) noDAD() error {
	return n.Sysctl("net.ipv6.conf.default.accept_dad", "0")
}

func (n *Namespace) link(name string) (netlink.Link, error) {
	link, err := n.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: link %q: %w", n.Name, name, err)
	}
	return link, nil
}

// up brings a link of the namespace up.
func (n *Namespace) up(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("lab: %s: set %s up: %w", n.Name, name, err)
	}
	return nil
}

// address gives a link an address, usable at once: nobody else can have it, so
// IPv6's duplicate address detection would only cost a second.
func (n *Namespace) address(name string, p netip.Prefix) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrReplace(link, a); err != nil {
		return fmt.Errorf("lab: %s: address %s on %s: %w", n.Name, p, name, err)
	}
	return nil
}

// route sends a prefix through a gateway on a link; onlink does not ask whether
// the gateway can be reached there.
func (n *Namespace) route(p netip.Prefix, via netip.Addr, name string, onlink bool) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p), Gw: via.AsSlice()}
	if onlink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := n.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("lab: %s: route %s via %s: %w", n.Name, p, via, err)
	}
	return nil
}

// newBridge makes a kernel bridge that is up.
func (n *Namespace) newBridge(name string, mtuBytes int) error {
	err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtuBytes, TxQLen: -1}})
	if err != nil {
		return fmt.Errorf("lab: %s: bridge %s: %w", n.Name, name, err)
	}
	return n.up(name)
}

// enslave makes a link a port of a bridge.
func (n *Namespace) enslave(name, bridge string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	master, err := n.link(bridge)
	if err != nil {
		return err
	}
	if err := n.nl.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("lab: %s: %s into %s: %w", n.Name, name, bridge, err)
	}
	return nil
}

// HardwareAddr is the MAC address of a link in the namespace.
func (n *Namespace) HardwareAddr(name string) (net.HardwareAddr, error) {
	link, err := n.link(name)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// SetMTU changes the MTU of a link in the namespace.
func (n *Namespace) SetMTU(name string, mtuBytes int) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.nl.LinkSetMTU(link, mtuBytes); err != nil {
		return fmt.Errorf("lab: %s: MTU %d on %s: %w", n.Name, mtuBytes, name, err)
	}
	return nil
}

// SetDown takes a link of the namespace down.
func (n *Namespace) SetDown(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	return n.nl.LinkSetDown(link)
}

// DeleteLink removes a link of the namespace, and its other end if it has one.
func (n *Namespace) DeleteLink(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	return n.nl.LinkDel(link)
}

// SetUp brings a link of the namespace up.
func (n *Namespace) SetUp(name string) error { return n.up(name) }

// Netlink is a route netlink handle inside the namespace, closed with it.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// ipNet converts to what netlink speaks. The host bits stay.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// host is the nth address of a prefix, n below 65,536.
func host(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	low := int(b[len(b)-2])<<8 | int(b[len(b)-1])
	low += n
	b[len(b)-2], b[len(b)-1] = byte(low>>8), byte(low)
	a, _ := netip.AddrFromSlice(b)
	return a
}
