package tap

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

const tapName = "eth0"

// create makes a TAP in n and opens its queues as the daemon does, outside.
func create(t *testing.T, n *namespace, c Config) (*Device, []*Queue) {
	t.Helper()
	var d *Device
	n.do(t, func() (err error) {
		d, err = Create(c)
		return err
	})
	return d, openAll(t, d)
}

// openAll hands the device's descriptors to queues.
func openAll(t *testing.T, d *Device) []*Queue {
	t.Helper()
	var qs []*Queue
	for _, fd := range d.FDs {
		q, err := NewQueue(fd, d.Features)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { q.Close() })
		qs = append(qs, q)
	}
	d.FDs = nil
	return qs
}

// up gives the TAP in n its addresses, without duplicate address detection, and
// waits until the kernel, which does even that in the background, answers for them.
func up(t *testing.T, n *namespace, addrs ...string) {
	t.Helper()
	n.do(t, func() error {
		link, err := netlink.LinkByName(tapName)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			ready, err := addressesReady(link)
			if ready || err != nil {
				return err
			}
			if time.Now().After(deadline) {
				return errors.New("an address is still tentative")
			}
		}
	})
}

// addressesReady reports whether no global address is tentative.
func addressesReady(link netlink.Link) (bool, error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, err
		}
	}
	return true, err
}

// seen counts what a forwarder carried.
type seen struct {
	frames, dropped, partial, tcpGSO, udpGSO atomic.Int64
}

// forward carries frames between queues a[i] and b[i] until the test ends.
func forward(t *testing.T, a, b []*Queue) *seen {
	t.Helper()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	s := new(seen)
	done := make(chan error, len(a))
	for i := range a {
		go func() { done <- s.pump(a[i], b[i], stop) }()
	}
	t.Cleanup(func() {
		unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		for range a {
			if err := <-done; err != nil {
				t.Errorf("forwarder: %v", err)
			}
		}
		unix.Close(stop)
	})
	return s
}

func (s *seen) pump(a, b *Queue, stop int) error {
	batch := frame.NewBatch(frame.BatchFrames)
	poll := []unix.PollFd{
		{Fd: int32(a.PollFD()), Events: unix.POLLIN},
		{Fd: int32(b.PollFD()), Events: unix.POLLIN},
		{Fd: int32(stop), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if poll[2].Revents != 0 {
			return nil
		}
		for _, dir := range [2][2]*Queue{{a, b}, {b, a}} {
			batch.Reset()
			if err := dir[0].Receive(batch); err != nil {
				return err
			}
			var fs []*frame.Frame
			for i := range batch.Len() {
				f := batch.At(i)
				s.count(f)
				if f.Drop == drop.None {
					fs = append(fs, f)
				}
			}
			dir[1].Transmit(fs)
			for _, f := range fs {
				if f.Drop != drop.None {
					s.dropped.Add(1)
				}
			}
		}
	}
}

func (s *seen) count(f *frame.Frame) {
	s.frames.Add(1)
	if f.Drop != drop.None {
		s.dropped.Add(1)
	}
	if f.VNet.Flags&frame.NeedsCsum != 0 {
		s.partial.Add(1)
	}
	switch f.VNet.GSOType.Kind() {
	case frame.GSOTCPv4, frame.GSOTCPv6:
		s.tcpGSO.Add(1)
	case frame.GSOUDPL4:
		s.udpGSO.Add(1)
	}
}

// TestTwoTAPs joins two namespaces and sends between them what kernels send, with
// each combination of devices: what one hands over as a super-frame, the other
// takes as one, or as segments made in software.
func TestTwoTAPs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		a, b   Config
		offers bool // a's kernel hands over super-frames
	}{
		{"virtio-net headers, two queues", Config{Name: tapName, Queues: 2}, Config{Name: tapName, Queues: 2}, true},
		{"virtio-net header to plain", Config{Name: tapName}, Config{Name: tapName, Plain: true}, true},
		{"plain to virtio-net header", Config{Name: tapName, Plain: true}, Config{Name: tapName}, false},
		{"plain, two queues", Config{Name: tapName, Queues: 2, Plain: true}, Config{Name: tapName, Queues: 2, Plain: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newNamespace(t), newNamespace(t)
			da, qa := create(t, a, tt.a)
			_, qb := create(t, b, tt.b)
			up(t, a, "192.0.2.1/24", "2001:db8::1/64")
			up(t, b, "192.0.2.2/24", "2001:db8::2/64")
			s := forward(t, qa, qb) // not before both are up: frames would be lost

			ping(t, a, "192.0.2.2", false)
			ping(t, a, "2001:db8::2", true)
			for _, ip := range []string{"192.0.2.2", "2001:db8::2"} {
				stream(t, a, b, ip, 4<<20)
				datagrams(t, a, b, ip)
			}
			if n := s.dropped.Load(); n != 0 {
				t.Errorf("%d frames dropped of %d", n, s.frames.Load())
			}
			if got := s.tcpGSO.Load() > 0 && s.partial.Load() > 0; got != tt.offers {
				t.Errorf("%d TCP super-frames, %d partial checksums; want some: %v", s.tcpGSO.Load(), s.partial.Load(), tt.offers)
			}
			if got, want := s.udpGSO.Load() > 0, tt.offers && da.Features.Has(USO); got != want {
				t.Errorf("%d UDP super-frames; want some: %v", s.udpGSO.Load(), want)
			}
		})
	}
}

// ping sends echo requests through a raw socket of n until one is answered.
func ping(t *testing.T, n *namespace, ip string, v6 bool) {
	t.Helper()
	network, proto := "ip4:icmp", 1
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: make([]byte, 1200)}}
	var reply icmp.Type = ipv4.ICMPTypeEchoReply
	if v6 {
		network, proto = "ip6:ipv6-icmp", 58
		m.Type, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	n.do(t, func() error {
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		text, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.WriteTo(text, &net.IPAddr{IP: net.ParseIP(ip)}); err != nil {
			return err
		}
		buf := make([]byte, 2000)
		for {
			k, from, err := c.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("ping %s: %w", ip, err)
			}
			got, err := icmp.ParseMessage(proto, buf[:k])
			if err == nil && got.Type == reply && from.String() == ip && k == len(text) {
				return nil
			}
		}
	})
}

// stream sends n bytes by TCP from a to ip in b and compares their digest.
func stream(t *testing.T, a, b *namespace, ip string, n int) {
	t.Helper()
	var l net.Listener
	b.do(t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(ip, "0"))
		return err
	})
	defer l.Close()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	got := make(chan [32]byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- [32]byte{}
			return
		}
		defer c.Close()
		h := sha256.New()
		io.Copy(h, c)
		got <- [32]byte(h.Sum(nil))
	}()
	var c net.Conn
	a.do(t, func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", l.Addr().String())
		return err
	})
	c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err := c.Write(data)
	c.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	if err != nil || <-got != sha256.Sum256(data) {
		t.Errorf("TCP to %s: %v, or other bytes than were sent", ip, err)
	}
}

// datagrams sends one UDP_SEGMENT train from a to ip in b and reads it whole.
func datagrams(t *testing.T, a, b *namespace, ip string) {
	t.Helper()
	const size, count = 1200, 10
	var server net.PacketConn
	b.do(t, func() (err error) {
		server, err = net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
		return err
	})
	defer server.Close()
	a.do(t, func() error {
		c, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := setSegment(c.(syscall.Conn), size); err != nil {
			return fmt.Errorf("UDP_SEGMENT: %w", err)
		}
		_, err = c.Write(make([]byte, size*count))
		return err
	})
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 65536)
	for i := range count {
		if n, _, err := server.ReadFrom(buf); err != nil || n != size {
			t.Fatalf("UDP to %s: datagram %d has %d bytes, %v", ip, i, n, err)
		}
	}
}

func setSegment(c syscall.Conn, size int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	})
	return errors.Join(err, optErr)
}

// TestOffloadFlags asks the kernel, through ethtool, for what the device offers.
func TestOffloadFlags(t *testing.T) {
	n := newNamespace(t)
	d, _ := create(t, n, Config{Name: tapName, Queues: 2})
	for _, tt := range []struct {
		name    string
		command uint32
		feature Features
	}{{"tx checksum", unix.ETHTOOL_GTXCSUM, CSUM}, {"tso", unix.ETHTOOL_GTSO, TSO4}} {
		n.do(t, func() error {
			on, err := ethtoolValue(tapName, tt.command)
			if want := d.Features.Has(tt.feature); err == nil && (on != 0) != want {
				t.Errorf("%s: %d, want on: %v", tt.name, on, want)
			}
			return err
		})
	}
	t.Logf("features: %v", d.Features)
}

// ethtoolValue is ioctl SIOCETHTOOL with struct ethtool_value.
func ethtoolValue(name string, command uint32) (uint32, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	value := struct{ command, data uint32 }{command: command}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:], name)
	ifr.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return 0, errno
	}
	return value.data, nil
}
