//go:build linux

package vxlan_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/tunnel/netnstest"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// The kernel's vxlan device, set up as flannel sets it up, is the other end:
//
//	namespace pod            namespace node               namespace flannel
//	TAP 10.244.1.5  <-----> Queue, underlay .1  <-veth->  underlay .2, flannel.1 10.244.2.0
//
// Namespaces are anonymous: they go with the test's descriptors, however it ends.

const (
	podV4, podV6         = "10.244.1.5", "fd00:10:244:1::5"
	flannelV4, flannelV6 = "10.244.2.0", "fd00:10:244:2::"
)

var macK = frame.MAC{2, 0, 0x5e, 0, 0, 0xc}

// flannelNode is the kernel's end and ours.
type flannelNode struct {
	flannel netns.NsHandle
	tunnel  *vxlan.Tunnel
}

// newFlannelNode sets up both ends over an underlay of the family.
func newFlannelNode(t *testing.T, v6 bool, trains bool) *flannelNode {
	netnstest.RequireRoot(t)
	const underlayMTU = 1500
	n := &flannelNode{flannel: netnstest.New(t)}
	node := netnstest.New(t)
	here, there, bits, overhead := "192.0.2.1", "192.0.2.2", "/24", vxlan.OverheadV4Bytes
	if v6 {
		here, there, bits, overhead = "2001:db8::1", "2001:db8::2", "/64", vxlan.OverheadV6Bytes
	}
	netnstest.Veth(t, "underlay", underlayMTU, node, here+bits, n.flannel, there+bits)
	netnstest.Do(t, n.flannel, func() error { return flannelDevice(here, there, underlayMTU-overhead) })
	netnstest.Do(t, node, func() (err error) {
		mtu, err := vxlan.PodMTU(netip.MustParseAddr(here))
		if err != nil {
			return err
		}
		if mtu != underlayMTU-overhead {
			t.Errorf("pod MTU %d, want %d", mtu, underlayMTU-overhead)
		}
		n.tunnel, err = vxlan.New(vxlan.Config{
			Underlays: []netip.Addr{netip.MustParseAddr(here)}, MAC: macA, Offload: trains, TSOECN: true,
		})
		return err
	})
	t.Cleanup(func() {
		if err := n.tunnel.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	setPeer(t, n.tunnel, vxlan.Peer{ID: idB, Node: "flannel", Underlay: netip.MustParseAddr(there), AnyPort: true, MAC: macK})
	return n
}

// flannelDevice makes the vxlan device as flannel does: no learning, no flooding,
// one static entry for the other node in each table.
func flannelDevice(here, there string, mtuBytes int) error {
	link, err := netlink.LinkByName("underlay")
	if err != nil {
		return err
	}
	dev := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", HardwareAddr: macK[:], MTU: mtuBytes},
		VxlanId:   vxlan.DefaultVNI, VtepDevIndex: link.Attrs().Index, SrcAddr: net.ParseIP(there),
		Port: vxlan.DefaultPort, UDPCSum: true,
	}
	for _, step := range []func() error{
		func() error { return netlink.LinkAdd(dev) },
		func() error { return netnstest.Addr(dev, flannelV4+"/32") },
		func() error { return netnstest.Addr(dev, flannelV6+"/128") },
		func() error { return netlink.LinkSetUp(dev) },
		func() error { return netnstest.Route(dev, "10.244.1.0/24", "10.244.1.0", macA) },
		func() error { return netnstest.Route(dev, "fd00:10:244:1::/64", "fd00:10:244:1::", macA) },
		func() error {
			return netlink.NeighAppend(&netlink.Neigh{
				LinkIndex: dev.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
				IP: net.ParseIP(here), HardwareAddr: macA[:],
			})
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// forEachUnderlay runs a test over both underlay families, with trains and without.
func forEachUnderlay(t *testing.T, f func(t *testing.T, n *flannelNode)) {
	for _, v6 := range []bool{false, true} {
		for _, trains := range []bool{true, false} {
			t.Run(fmt.Sprintf("IPv6 underlay %v, trains %v", v6, trains), func(t *testing.T) {
				f(t, newFlannelNode(t, v6, trains))
			})
		}
	}
}

// echoRequest is a ping from the pod to the flannel node.
func echoRequest(v6 bool, seq uint16) *frame.Frame {
	icmp := []byte{wire.ICMPEcho, 0, 0, 0, 0x12, 0x34, byte(seq >> 8), byte(seq)}
	icmp = append(icmp, "are you there?"...)
	var b []byte
	if v6 {
		icmp[0] = wire.ICMPv6Echo
		src, dst := netip.MustParseAddr(podV6), netip.MustParseAddr(flannelV6)
		pseudo := append(src.AsSlice(), dst.AsSlice()...)
		pseudo = append(pseudo, 0, 0, 0, byte(len(icmp)), 0, 0, 0, wire.ProtoICMPv6)
		binary.BigEndian.PutUint16(icmp[2:], ^uint16(offloadtest.Sum(append(pseudo, icmp...))))
		b = append([]byte{12: 0x86, 13: 0xdd}, 0x60, 0, 0, 0, 0, byte(len(icmp)), wire.ProtoICMPv6, 64)
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	} else {
		binary.BigEndian.PutUint16(icmp[2:], ^uint16(offloadtest.Sum(icmp)))
		ip := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 0, 0x40, 0, 64, wire.ProtoICMP, 0, 0}
		ip = append(ip, netip.MustParseAddr(podV4).AsSlice()...)
		ip = append(ip, netip.MustParseAddr(flannelV4).AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^uint16(offloadtest.Sum(ip)))
		b = append([]byte{12: 0x08, 13: 0x00}, ip...)
	}
	f := frame.New()
	f.Set(append(b, icmp...))
	return f
}

func TestKernelVXLANAnswersPing(t *testing.T) {
	forEachUnderlay(t, func(t *testing.T, n *flannelNode) {
		for _, v6 := range []bool{false, true} {
			for seq := range uint16(10) {
				f := echoRequest(v6, seq)
				transmit(n.tunnel.Queue(0), idB, f)
				if f.Drop != drop.None {
					t.Fatalf("not sent: %v", f.Drop)
				}
				reply := awaitEchoReply(t, n.tunnel.Queue(0))
				sent, got := f.Bytes(), reply.Bytes()
				if !bytes.Equal(got[len(got)-18:], sent[len(sent)-18:]) { // identifier to payload
					t.Errorf("IPv6 %v: the answer is to something else", v6)
				}
			}
		}
	})
}

// awaitEchoReply passes over what the kernel sends of its own.
func awaitEchoReply(t *testing.T, q *vxlan.Queue) *frame.Frame {
	t.Helper()
	for {
		for _, f := range receive(t, q, 1) {
			var h wire.Headers
			if f.Drop == drop.None && wire.Parse(f.Bytes(), &h) == drop.None && h.IsEcho() {
				if f.Peer != idB {
					t.Errorf("answer from member %d, want %d", f.Peer, idB)
				}
				return f
			}
		}
	}
}

// The kernel's sockets: datagrams of many sizes, alone and cut by UDP_SEGMENT,
// arrive whole, and go back.
func TestKernelVXLANCarriesUDP(t *testing.T) {
	forEachUnderlay(t, func(t *testing.T, n *flannelNode) {
		for _, inner := range []struct{ pod, flannel string }{{podV4, flannelV4}, {podV6, flannelV6}} {
			var c *net.UDPConn
			netnstest.Do(t, n.flannel, func() (err error) {
				c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(inner.flannel), 0)))
				return err
			})
			defer c.Close()
			to := netip.AddrPortFrom(netip.MustParseAddr(inner.pod), 9)
			segment := unix.CmsgLen(2)
			for _, size := range []int{1, 100, 1300} {
				for _, count := range []int{1, 2, 40} {
					if size == 1 && count > 1 {
						continue // no digest to tell the pieces by
					}
					data := offloadtest.Random(size*count-size/3, uint64(size*count))
					oob := make([]byte, unix.CmsgSpace(2))
					binary.NativeEndian.PutUint64(oob, uint64(segment))
					binary.NativeEndian.PutUint32(oob[8:], unix.IPPROTO_UDP)
					binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
					binary.NativeEndian.PutUint16(oob[16:], uint16(size))
					if _, _, err := c.WriteMsgUDPAddrPort(data, oob, to); err != nil {
						t.Fatal(err)
					}
					var got []byte
					for len(got) < len(data) {
						for _, f := range receive(t, n.tunnel.Queue(0), 1) {
							got = append(got, payloads(t, f, size)...)
						}
					}
					if !bytes.Equal(got, data) {
						t.Errorf("to %v, %d datagrams of %d bytes: other bytes arrived", to, count, size)
					}
				}
			}
			back := offloadtest.TCP4(offloadtest.Random(20000, 1)).ToUDP()
			if back.Dst = netip.MustParseAddr(inner.flannel); back.Dst.Is6() {
				back.ToV6()
				back.Dst = netip.MustParseAddr(inner.flannel)
			}
			back.Src, back.DstPort = netip.MustParseAddr(inner.pod), uint16(c.LocalAddr().(*net.UDPAddr).Port)
			transmit(n.tunnel.Queue(0), idB, back.Super(1200))
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 2000)
			for at := 0; at < len(back.Payload); at += 1200 {
				k, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf[:k], back.Payload[at:min(at+1200, len(back.Payload))]) {
					t.Fatalf("datagram at %d: other bytes arrived", at)
				}
			}
		}
	})
}

// payloads gives the UDP payload of a frame, each packet verified and at most size
// bytes; nothing of what the kernel sends of its own.
func payloads(t *testing.T, f *frame.Frame, size int) (out []byte) {
	t.Helper()
	if f.Drop == drop.Multicast {
		return nil
	}
	if f.Drop != drop.None {
		t.Fatalf("dropped: %v", f.Drop)
	}
	if r := wire.Parse(f.Bytes(), new(wire.Headers)); r != drop.None {
		t.Fatalf("does not parse: %v", r)
	}
	if !f.VNet.IsGSO() {
		if r := offload.Complete(f); r != drop.None {
			t.Fatalf("can't be completed: %v", r)
		}
	}
	for _, b := range expand(t, f) {
		var h wire.Headers
		if r := wire.Parse(b, &h); r != drop.None || h.Proto != wire.ProtoUDP {
			continue
		}
		if r := offload.VerifyTransport(b, &h); r != drop.None {
			t.Fatal(r)
		}
		if n := h.End - h.PayloadOff; n > size {
			t.Fatalf("a datagram of %d bytes, want at most %d", n, size)
		}
		out = append(out, b[h.PayloadOff:h.End]...)
	}
	return out
}
