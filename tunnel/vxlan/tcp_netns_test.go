//go:build linux

package vxlan_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vswitch/tunnel/netnstest"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// pod is a namespace with a TAP that a goroutine joins to the tunnel, as the
// switch would: real TCP on both ends.
type pod struct {
	ns       netns.NsHandle
	merged   int // super-frames that came out of the tunnel
	stop     func()
	dropped  map[drop.Reason]int
	received int
}

// offloads are what the pod's kernel may leave to us (include/uapi/linux/if_tun.h).
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN

func newPod(t *testing.T, n *flannelNode, mtu int) *pod {
	t.Helper()
	p := &pod{ns: netnstest.New(t), dropped: map[drop.Reason]int{}}
	tap := -1
	netnstest.Do(t, p.ns, func() (err error) {
		tap, err = openTAP(mtu)
		return err
	})
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

// openTAP makes the pod's interface, with offloads, and its addresses and routes.
func openTAP(mtuBytes int) (fd int, err error) {
	if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq("eth0")
	if err != nil {
		return fd, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	var link netlink.Link
	for _, step := range []func() error{
		func() error { return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr) },
		func() error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads) },
		func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1) },
		func() (err error) { link, err = netlink.LinkByName("eth0"); return err },
		func() error { return netlink.LinkSetHardwareAddr(link, macB[:]) },
		func() error { return netlink.LinkSetMTU(link, mtuBytes) },
		func() error { return netnstest.Addr(link, podV4+"/32") },
		func() error { return netnstest.Addr(link, podV6+"/128") },
		func() error { return netlink.LinkSetUp(link) },
		func() error { return netnstest.Route(link, "10.244.2.0/24", "169.254.1.1", macA) },
		func() error { return netnstest.Route(link, "fd00:10:244:2::/64", "fe80::1", macA) },
	} {
		if err := step(); err != nil {
			return fd, err
		}
	}
	return fd, nil
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
			if _, err := unix.Write(tap, b); err != nil {
				t.Errorf("write %d bytes, %+v: %v", len(b), f.VNet, err)
			}
		}
	}
}

// connect makes a TCP connection from a socket of one namespace to one of another.
func connect(t *testing.T, from, to netns.NsHandle, at string) (client, server net.Conn) {
	t.Helper()
	var l net.Listener
	netnstest.Do(t, to, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(at, "0"))
		return err
	})
	defer l.Close()
	netnstest.Do(t, from, func() (err error) {
		client, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		return err
	})
	t.Cleanup(func() { client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
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
				c, s := connect(t, p.ns, n.flannel, inner.flannel)
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
