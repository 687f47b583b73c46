//go:build linux

package vxlan_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
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

// requireRoot skips where namespaces can't be made.
func requireRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces and a vxlan device")
	}
}

// inNS runs f on a thread that is in the namespace. The thread is not reused
// where it can't be brought back.
func inNS(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			err = netns.Set(ns)
		}
		if err != nil {
			done <- err
			return // locked: the thread ends with the goroutine
		}
		f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newNS makes an anonymous namespace with lo up.
func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	inNS(t, ns, func() {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.LinkSetUp(lo))
	})
	return ns
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err) // not Fatal: called from other goroutines, too
	}
}

func addr(t testing.TB, link netlink.Link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	a.Flags |= unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(link, a))
}

// route adds an onlink route with a permanent neighbour for its gateway.
func route(t testing.TB, link netlink.Link, dst, via string, mac frame.MAC) {
	t.Helper()
	_, n, err := net.ParseCIDR(dst)
	must(t, err)
	gw := net.ParseIP(via)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: n, Gw: gw, Flags: int(netlink.FLAG_ONLINK)}))
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: gw, HardwareAddr: mac[:], State: netlink.NUD_PERMANENT,
	}))
}

// flannelNode is the two namespaces and our end of the tunnel.
type flannelNode struct {
	node, flannel netns.NsHandle
	tunnel        *vxlan.Tunnel
	underlayMTU   int
}

// newFlannelNode sets up both ends over an underlay of the family.
func newFlannelNode(t *testing.T, v6 bool, trains bool) *flannelNode {
	requireRoot(t)
	n := &flannelNode{node: newNS(t), flannel: newNS(t), underlayMTU: 1500}
	here, there, bits := "192.0.2.1", "192.0.2.2", "/24"
	overhead := vxlan.OverheadV4Bytes
	if v6 {
		here, there, bits = "2001:db8::1", "2001:db8::2", "/64"
		overhead = vxlan.OverheadV6Bytes
	}
	inNS(t, n.node, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "underlay", MTU: n.underlayMTU}, PeerName: "underlay",
			PeerNamespace: netlink.NsFd(n.flannel),
		}))
		link, err := netlink.LinkByName("underlay")
		must(t, err)
		addr(t, link, here+bits)
		must(t, netlink.LinkSetUp(link))
	})
	inNS(t, n.flannel, func() {
		link, err := netlink.LinkByName("underlay")
		must(t, err)
		addr(t, link, there+bits)
		must(t, netlink.LinkSetUp(link))
		dev := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", HardwareAddr: macK[:], MTU: n.underlayMTU - overhead},
			VxlanId:   vxlan.DefaultVNI, VtepDevIndex: link.Attrs().Index, SrcAddr: net.ParseIP(there),
			Port: vxlan.DefaultPort, UDPCSum: true,
		}
		must(t, netlink.LinkAdd(dev))
		addr(t, dev, flannelV4+"/32")
		addr(t, dev, flannelV6+"/128")
		must(t, netlink.LinkSetUp(dev))
		route(t, dev, "10.244.1.0/24", "10.244.1.0", macA)
		route(t, dev, "fd00:10:244:1::/64", "fd00:10:244:1::", macA)
		must(t, netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: dev.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP(here), HardwareAddr: macA[:],
		}))
	})
	if t.Failed() {
		t.FailNow()
	}
	inNS(t, n.node, func() {
		var err error
		n.tunnel, err = vxlan.New(vxlan.Config{
			Underlays: []netip.Addr{netip.MustParseAddr(here)}, MAC: macA, Offload: trains, TSOECN: true,
		})
		must(t, err)
		mtu, err := vxlan.PodMTU(netip.MustParseAddr(here))
		must(t, err)
		if mtu != n.underlayMTU-overhead {
			t.Errorf("pod MTU %d, want %d", mtu, n.underlayMTU-overhead)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { must(t, n.tunnel.Close()) })
	setPeer(t, n.tunnel, vxlan.Peer{ID: idB, Node: "flannel", Underlay: netip.MustParseAddr(there), AnyPort: true, MAC: macK})
	return n
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
			inNS(t, n.flannel, func() {
				var err error
				c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(inner.flannel), 0)))
				must(t, err)
			})
			if t.Failed() {
				t.FailNow()
			}
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

// pod is a namespace with a TAP that a goroutine joins to the tunnel, as the
// switch would: real TCP on both ends.
type pod struct {
	ns       netns.NsHandle
	merged   int // super-frames that came out of the tunnel
	stop     func()
	dropped  map[drop.Reason]int
	received int
}

// tunSetVNetLE and others: include/uapi/linux/if_tun.h.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN

func newPod(t *testing.T, n *flannelNode, mtu int) *pod {
	t.Helper()
	p := &pod{ns: newNS(t), dropped: map[drop.Reason]int{}}
	tap := -1
	inNS(t, p.ns, func() {
		var err error
		tap, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		must(t, err)
		ifr, err := unix.NewIfreq("eth0")
		must(t, err)
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		must(t, unix.IoctlIfreq(tap, unix.TUNSETIFF, ifr))
		must(t, unix.IoctlSetInt(tap, unix.TUNSETOFFLOAD, offloads))
		must(t, unix.IoctlSetPointerInt(tap, unix.TUNSETVNETLE, 1))
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.LinkSetHardwareAddr(link, macB[:]))
		must(t, netlink.LinkSetMTU(link, mtu))
		addr(t, link, podV4+"/32")
		addr(t, link, podV6+"/128")
		must(t, netlink.LinkSetUp(link))
		route(t, link, "10.244.2.0/24", "169.254.1.1", macA)
		route(t, link, "fd00:10:244:2::/64", "fe80::1", macA)
	})
	if t.Failed() {
		t.FailNow()
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.forward(t, tap, wake, n.tunnel.Queue(0))
	}()
	var once sync.Once
	p.stop = func() {
		once.Do(func() {
			unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 1})
			<-done
			unix.Close(tap)
			unix.Close(wake)
		})
	}
	t.Cleanup(p.stop)
	return p
}

// forward moves frames between the TAP and the tunnel until wake is written.
func (p *pod) forward(t *testing.T, tap, wake int, q *vxlan.Queue) {
	in, out := frame.NewBatch(frame.BatchFrames), frame.NewBatch(frame.BatchFrames)
	var fs []*frame.Frame
	for {
		fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(tap), Events: unix.POLLIN}, {Fd: int32(q.PollFD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			t.Error(err)
			return
		}
		if fds[0].Revents != 0 {
			return
		}
		out.Reset()
		fs = fs[:0]
		for !out.Full() {
			f := out.Next()
			n, err := unix.Read(tap, f.SpaceWithHeadroom(frame.VNetHeaderBytes))
			if err != nil {
				break
			}
			f.SetLen(n - frame.VNetHeaderBytes)
			f.VNet.Decode(f.WithHeadroom(frame.VNetHeaderBytes))
			f.Peer = idB
			out.Keep()
			fs = append(fs, f)
		}
		q.Transmit(fs)
		for _, f := range fs {
			p.dropped[f.Drop]++
		}
		in.Reset()
		if err := q.Receive(in); err != nil {
			t.Error(err)
			return
		}
		for i := range in.Len() {
			f := in.At(i)
			p.dropped[f.Drop]++
			if f.Drop != drop.None {
				continue
			}
			p.received++
			if f.VNet.IsGSO() {
				p.merged++
			}
			copy(f.Bytes(), macB[:])
			b := f.WithHeadroom(frame.VNetHeaderBytes)
			f.VNet.Encode(b)
			if _, err := unix.Write(tap, b); err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Errorf("write %d bytes, %+v: %v", len(b), f.VNet, err)
			}
		}
	}
}

// listenIn and dialIn open sockets in a namespace.
func listenIn(t *testing.T, ns netns.NsHandle, at string) (l net.Listener) {
	t.Helper()
	inNS(t, ns, func() {
		var err error
		l, err = net.Listen("tcp", net.JoinHostPort(at, "0"))
		must(t, err)
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dialIn(t *testing.T, ns netns.NsHandle, to string) (c net.Conn) {
	t.Helper()
	inNS(t, ns, func() {
		var err error
		c, err = net.DialTimeout("tcp", to, 10*time.Second)
		must(t, err)
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// stream sends n random bytes from one end to the other and compares digests.
func stream(t *testing.T, n int64, from, to net.Conn) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	from.SetDeadline(deadline)
	to.SetDeadline(deadline)
	sent := make(chan []byte, 1)
	go func() {
		h := sha256.New()
		r := rand.NewChaCha8([32]byte{1})
		if _, err := io.CopyN(io.MultiWriter(from, h), r, n); err != nil {
			t.Errorf("send: %v", err)
		}
		sent <- h.Sum(nil)
	}()
	h := sha256.New()
	if _, err := io.CopyN(h, to, n); err != nil {
		t.Fatalf("receive: %v", err)
	}
	if !bytes.Equal(<-sent, h.Sum(nil)) {
		t.Error("what arrived is not what was sent")
	}
}

func TestKernelVXLANCarriesTCP(t *testing.T) {
	const streamBytes = 32 << 20
	forEachUnderlay(t, func(t *testing.T, n *flannelNode) {
		mtu := 1500 - vxlan.OverheadV6Bytes
		p := newPod(t, n, mtu)
		for _, inner := range []struct{ pod, flannel string }{{podV4, flannelV4}, {podV6, flannelV6}} {
			t.Run(inner.pod, func(t *testing.T) {
				l := listenIn(t, n.flannel, inner.flannel)
				c := dialIn(t, p.ns, l.Addr().String())
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				start := time.Now()
				stream(t, streamBytes, c, s)
				up := time.Since(start)
				start = time.Now()
				stream(t, streamBytes, s, c)
				t.Logf("pod to flannel %.2f Gb/s, flannel to pod %.2f Gb/s", gbps(streamBytes, up), gbps(streamBytes, time.Since(start)))
			})
		}
		p.stop()
		t.Logf("%d frames from flannel, %d of them merged; outcomes %v; sockets %+v", p.received, p.merged, p.dropped, n.tunnel.Stats())
		if p.merged == 0 {
			t.Error("not one super-frame came out of the tunnel")
		}
	})
}

func gbps(n int64, d time.Duration) float64 { return float64(n) * 8 / float64(d.Nanoseconds()) }
