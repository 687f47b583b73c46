package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// What vswitch is compared with, and works with: the kernel's own bridge, and
// the kernel's own VXLAN as flannel sets it up.

// KernelPod is a namespace on a kernel bridge.
type KernelPod struct {
	*Namespace
	IPv4, IPv6 netip.Addr
}

// IP is the pod's address of a family, 4 or 6.
func (p *KernelPod) IP(family int) netip.Addr {
	if family == 6 {
		return p.IPv6
	}
	return p.IPv4
}

// KernelBridge makes pods in one subnet, each joined by veth to one kernel
// bridge that has a namespace of its own.
func (l *Lab) KernelBridge(pods, mtuBytes int) ([]*KernelPod, error) {
	bridge, err := l.NewNamespace("kbridge")
	if err != nil {
		return nil, err
	}
	if err := bridge.newBridge("br0", mtuBytes); err != nil {
		return nil, err
	}
	subnet4, subnet6 := netip.MustParsePrefix("10.240.0.0/24"), netip.MustParsePrefix("fd00:10:240::/64")
	var made []*KernelPod
	for i := range pods {
		p, err := l.newKernelPod(fmt.Sprintf("kpod%d", i+1), bridge, fmt.Sprintf("veth%d", i+1), subnet4, subnet6, i+1, mtuBytes)
		if err != nil {
			return nil, err
		}
		made = append(made, p)
	}
	return made, nil
}

// newKernelPod makes a namespace and joins it to br0 of another.
func (l *Lab) newKernelPod(role string, bridge *Namespace, port string, subnet4, subnet6 netip.Prefix, number, mtuBytes int) (*KernelPod, error) {
	space, err := l.NewNamespace(role)
	if err != nil {
		return nil, err
	}
	p := &KernelPod{Namespace: space, IPv4: host(subnet4, number), IPv6: host(subnet6, number)}
	err = errors.Join(space.up("lo"), space.noDAD(), space.AllowPing(),
		connect(space, "eth0", bridge, port, mtuBytes, OffloadDefault))
	if err != nil {
		return nil, err
	}
	return p, errors.Join(
		bridge.enslave(port, "br0"),
		space.address("eth0", netip.PrefixFrom(p.IPv4, subnet4.Bits())),
		space.address("eth0", netip.PrefixFrom(p.IPv6, subnet6.Bits())))
}

// VXLAN constants of flannel's defaults on Linux, and of vswitch's.
const (
	FlannelVNI  = 1
	FlannelPort = 8472
	// Bytes a VXLAN packet adds to the inner IP packet: outer IP, UDP, VXLAN and
	// inner Ethernet headers.
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = overhead4 + 20
)

// Flannel is a node of kernel devices only, set up as flannel's vxlan backend
// does: for each family a vxlan device that learns nothing and a route, a
// neighbour and a forwarding entry per peer; pods on a bridge behind it.
//
// Pods' v4 packets travel on the v4 underlay and v6 on the v6 underlay, unless
// the node has one of them only, which then carries both.
type Flannel struct {
	Node         *Node
	CIDR4, CIDR6 netip.Prefix
	// VTEP MAC addresses of the devices for the pods' v4 and v6 packets.
	MAC4, MAC6 net.HardwareAddr
	// MTUBytes of the pods' and the tunnel's devices.
	MTUBytes int

	pods int
}

// Flannel turns a node into a kernel VXLAN node with these pod CIDRs. mtuBytes
// 0: what the underlay leaves.
func (n *Node) Flannel(cidr4, cidr6 netip.Prefix, mtuBytes int) (*Flannel, error) {
	f := &Flannel{Node: n, CIDR4: cidr4.Masked(), CIDR6: cidr6.Masked(), MTUBytes: mtuBytes}
	if f.MTUBytes == 0 {
		f.MTUBytes = n.lab.cfg.MTUBytes - overhead4
		if n.Underlay6.IsValid() {
			f.MTUBytes = n.lab.cfg.MTUBytes - overhead6
		}
	}
	err := errors.Join(
		n.Sysctl("net.ipv4.ip_forward", "1"),
		n.Sysctl("net.ipv6.conf.all.forwarding", "1"),
		n.newBridge("br0", f.MTUBytes))
	if err != nil {
		return nil, err
	}
	if f.MAC4, err = f.vxlan("flannel.1", f.outer(4), host(f.CIDR4, 0)); err != nil {
		return nil, err
	}
	f.MAC6 = f.MAC4
	if f.device(6) != f.device(4) {
		f.MAC6, err = f.vxlan(f.device(6), f.outer(6), host(f.CIDR6, 0))
	} else {
		err = n.address(f.device(6), netip.PrefixFrom(host(f.CIDR6, 0), 128))
	}
	return f, errors.Join(err,
		n.address("br0", netip.PrefixFrom(host(f.CIDR4, 1), f.CIDR4.Bits())),
		n.address("br0", netip.PrefixFrom(host(f.CIDR6, 1), f.CIDR6.Bits())))
}

// outer is the underlay address that carries the pods' packets of a family.
func (f *Flannel) outer(family int) netip.Addr {
	if n := f.Node; family == 6 && n.Underlay6.IsValid() || !n.Underlay4.IsValid() {
		return n.Underlay6
	}
	return f.Node.Underlay4
}

func (f *Flannel) device(family int) string {
	if family == 6 && f.outer(6) != f.outer(4) {
		return "flannel-v6.1"
	}
	return "flannel.1"
}

func (f *Flannel) vxlan(name string, local, address netip.Addr) (net.HardwareAddr, error) {
	n := f.Node
	under, err := n.link(underlayDevice)
	if err != nil {
		return nil, err
	}
	err = n.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs:    netlink.LinkAttrs{Name: name, MTU: f.MTUBytes, TxQLen: -1},
		VxlanId:      FlannelVNI,
		VtepDevIndex: under.Attrs().Index,
		SrcAddr:      local.AsSlice(),
		Port:         FlannelPort,
		Learning:     false,
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: vxlan device %s: %w", n.Name, name, err)
	}
	if err := errors.Join(n.up(name), n.address(name, netip.PrefixFrom(address, address.BitLen()))); err != nil {
		return nil, err
	}
	return n.HardwareAddr(name)
}

// FlannelPeer is what a flannel node must know of another node. Its MAC and
// Underlay of a family are used for the pods' packets of that family.
type FlannelPeer struct {
	CIDR4, CIDR6         netip.Prefix
	MAC4, MAC6           net.HardwareAddr
	Underlay4, Underlay6 netip.Addr
}

// Peer is the node as its peers must know it.
func (f *Flannel) Peer() FlannelPeer {
	return FlannelPeer{CIDR4: f.CIDR4, CIDR6: f.CIDR6, MAC4: f.MAC4, MAC6: f.MAC6, Underlay4: f.outer(4), Underlay6: f.outer(6)}
}

// AddPeer makes the node send to a peer: a route to the pod CIDR by way of its
// network address, that address's MAC, and that MAC's underlay address.
func (f *Flannel) AddPeer(p FlannelPeer) error {
	return errors.Join(
		f.addPeer(f.device(4), p.CIDR4, p.MAC4, p.Underlay4),
		f.addPeer(f.device(6), p.CIDR6, p.MAC6, p.Underlay6))
}

func (f *Flannel) addPeer(device string, cidr netip.Prefix, mac net.HardwareAddr, outer netip.Addr) error {
	if !cidr.IsValid() {
		return nil
	}
	n := f.Node
	link, err := n.link(device)
	if err != nil {
		return err
	}
	via := cidr.Masked().Addr()
	err = n.nl.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: via.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("lab: %s: neighbour %s: %w", n.Name, via, err)
	}
	err = n.nl.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: afBridge, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT, IP: outer.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("lab: %s: forwarding entry %s: %w", n.Name, mac, err)
	}
	return n.route(cidr.Masked(), via, device, true)
}

// afBridge is AF_BRIDGE: a forwarding entry rather than a neighbour.
const afBridge = 7

// AddPod makes a pod on the node's bridge.
func (f *Flannel) AddPod() (*KernelPod, error) {
	n := f.Node
	f.pods++
	bridge := n.Namespace
	p, err := n.lab.newKernelPod(fmt.Sprintf("%s-kpod%d", n.Host, f.pods), bridge, fmt.Sprintf("veth%d", f.pods), f.CIDR4, f.CIDR6, f.pods+1, f.MTUBytes)
	if err != nil {
		return nil, err
	}
	return p, errors.Join(
		p.route(netip.MustParsePrefix("0.0.0.0/0"), host(f.CIDR4, 1), "eth0", false),
		p.route(netip.MustParsePrefix("::/0"), host(f.CIDR6, 1), "eth0", false))
}

// NodeYAML is the node as a v1.Node with flannel's annotations, for `vswitch apply`.
func (f *Flannel) NodeYAML() string {
	annotations := fmt.Sprintf(`    flannel.alpha.coreos.com/backend-type: vxlan
    flannel.alpha.coreos.com/backend-data: '{"VNI":%d,"VtepMAC":%q}'
    flannel.alpha.coreos.com/public-ip: %q
`, FlannelVNI, f.MAC4, f.outer(4))
	if f.outer(6).Is6() {
		annotations += fmt.Sprintf(`    flannel.alpha.coreos.com/backend-v6-data: '{"VNI":%d,"VtepMAC":%q}'
    flannel.alpha.coreos.com/public-ipv6: %q
`, FlannelVNI, f.MAC6, f.outer(6))
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata:
  name: %s
  annotations:
%sspec:
  podCIDR: %s
  podCIDRs: [%q, %q]
`, f.Node.Host, annotations, f.CIDR4, f.CIDR4, f.CIDR6)
}
