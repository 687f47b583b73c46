//go:build linux

package vxlan_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// What package vswitch asks of a queue.
var _ interface {
	PollFD() int
	Receive(*frame.Batch) error
	Transmit([]*frame.Frame)
	Close() error
} = (*vxlan.Queue)(nil)

var (
	macA = frame.MAC{2, 0, 0x5e, 0, 0, 0xa}
	macB = frame.MAC{2, 0, 0x5e, 0, 0, 0xb}

	loopbacks = map[string]netip.Addr{
		"IPv4": netip.AddrFrom4([4]byte{127, 0, 0, 1}),
		"IPv6": netip.IPv6Loopback(),
	}
)

const (
	idA = 7 // as B knows A
	idB = 8 // as A knows B
)

// forEachFamily runs a test over both underlays; a host may lack IPv6.
func forEachFamily(t *testing.T, f func(t *testing.T, underlay netip.Addr)) {
	for name, underlay := range loopbacks {
		t.Run(name, func(t *testing.T) {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(underlay, 0).String())
			if err != nil {
				t.Skipf("this host can't bind %v: %v", underlay, err)
			}
			c.Close()
			f(t, underlay)
		})
	}
}

// open opens a tunnel on ports that are free.
func open(t testing.TB, cfg vxlan.Config) *vxlan.Tunnel {
	t.Helper()
	for range 100 {
		cfg.Port = uint16(20000 + rand.IntN(40000))
		tun, err := vxlan.New(cfg)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(tun.Ports()) != max(1, cfg.Sockets) {
			tun.Close()
			continue
		}
		t.Cleanup(func() {
			if err := tun.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return tun
	}
	t.Fatal("no free ports in 100 attempts")
	return nil
}

// pair opens two tunnels that are each other's members, as ethernet-MTU nodes.
func pair(t testing.TB, underlay netip.Addr, change func(*vxlan.Config)) (a, b *vxlan.Tunnel) {
	t.Helper()
	cfg := vxlan.Config{Underlays: []netip.Addr{underlay}, Offload: true, UnderlayMTUBytes: 1500, MAC: macA}
	if change != nil {
		change(&cfg)
	}
	a = open(t, cfg)
	cfg.MAC = macB
	b = open(t, cfg)
	setPeer(t, a, vxlan.Peer{ID: idB, Node: "b", Underlay: underlay, Ports: b.Ports(), MAC: macB})
	setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: a.Ports(), MAC: macA})
	return a, b
}

func setPeer(t testing.TB, tun *vxlan.Tunnel, p vxlan.Peer) {
	t.Helper()
	if err := tun.SetPeer(p); err != nil {
		t.Fatal(err)
	}
}

// waitReadable waits until a descriptor says that there is something.
func waitReadable(t testing.TB, fd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			t.Fatalf("nothing to receive after 5 s (%v)", err)
		}
		return
	}
}

func isReadable(t testing.TB, q *vxlan.Queue) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(q.PollFD()), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n == 1
}

// receive waits until packets, super-frames counted by their segments, have
// arrived, and returns copies of the frames.
func receive(t testing.TB, q *vxlan.Queue, packets int) []*frame.Frame {
	t.Helper()
	var got []*frame.Frame
	b := frame.NewBatch(frame.BatchFrames)
	for n := 0; n < packets; {
		waitReadable(t, q.PollFD())
		b.Reset()
		if err := q.Receive(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			got = append(got, b.At(i).Clone())
			n += len(expand(t, b.At(i)))
		}
	}
	return got
}

// expand gives the packets that a frame stands for.
func expand(t testing.TB, f *frame.Frame) [][]byte {
	t.Helper()
	if !f.VNet.IsGSO() {
		return [][]byte{f.Bytes()}
	}
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		t.Fatalf("super-frame does not parse: %v", r)
	}
	var s offload.Segments
	if r := s.Reset(f, &h); r != drop.None {
		t.Fatalf("super-frame can't be cut: %v", r)
	}
	var out [][]byte
	for i := range s.Len() {
		hdr := make([]byte, s.HeaderBytes())
		payload := s.At(i, hdr)
		out = append(out, append(hdr, payload...))
	}
	return out
}

// withMACs is a packet as it must arrive from A at B.
func withMACs(b []byte) []byte {
	b = bytes.Clone(b)
	copy(b, macB[:])
	copy(b[6:], macA[:])
	return b
}

// plain is p as a frame with a full checksum.
func plain(p *offloadtest.Packet) *frame.Frame {
	f := frame.New()
	f.Set(p.Bytes(false))
	return f
}

// transmit sends frames to member id.
func transmit(q *vxlan.Queue, id uint32, fs ...*frame.Frame) {
	for _, f := range fs {
		f.Peer = id
	}
	q.Transmit(fs)
}
