package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/wiretest"
)

// What a flood says, and an honest frame beside it.
const (
	forgedMark = "forged, must not be seen"
	honestMark = "honest, must be seen"
)

// lookout counts what of a flood reaches a pod.
type lookout struct {
	socket         *rawSocket
	forged, honest atomic.Uint64
	mu             sync.Mutex
	example        []byte // the first forged frame; guarded by mu
}

// lookFrom begins, until the test ends.
func lookFrom(t *testing.T, p *lab.Pod) *lookout {
	t.Helper()
	c := &lookout{socket: openRaw(t, p)}
	if err := unix.SetsockoptInt(c.socket.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(c.socket.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	var stopped atomic.Bool
	done := make(chan struct{})
	t.Cleanup(func() { stopped.Store(true); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for !stopped.Load() {
			n, from, err := unix.Recvfrom(c.socket.fd, b, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			switch {
			case contains(b[:n], honestMark):
				c.honest.Add(1)
			case contains(b[:n], forgedMark):
				c.forged.Add(1)
				c.mu.Lock()
				if c.example == nil {
					c.example = append(c.example, b[:n]...)
				}
				c.mu.Unlock()
			}
		}
	}()
	return c
}

// lost is how many frames the capture itself missed: none, or its word is worth little.
func (c *lookout) lost(t *testing.T) uint32 {
	t.Helper()
	stats, err := unix.GetsockoptTpacketStats(c.socket.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return stats.Drops
}

// forgeries are frames that a1 may not send, the tuple of a connection of its
// neighbour's among them, and what a stranger's tunnel would carry.
func forgeries(c *cluster) (frames [][]byte, inner [][]byte) {
	gateway := [6]byte{0x02, 0x76, 0x73, 0x77, 0, 1}
	own, neighbour := [6]byte(c.a1.MAC), [6]byte(c.a2.MAC)
	for _, to := range []*lab.Pod{c.a2, c.b1} {
		for _, family := range []int{4, 6} {
			for _, from := range []netip.Addr{c.a2.IP(family), c.b1.IP(family), c.b2.IP(family), c.nodes[0].Underlay4} {
				if from == to.IP(family) || from.Is4() != (family == 4) {
					continue
				}
				p := wiretest.Packet{
					SrcMAC: own, DstMAC: gateway, Src: from, Dst: to.IP(family),
					Proto: 17, SrcPort: 4000, DstPort: 4001, Payload: []byte(forgedMark),
				}
				frames = append(frames, p.Frame())
				inner = append(inner, p.Frame())
			}
			p := wiretest.Packet{
				SrcMAC: neighbour, DstMAC: gateway, Src: c.a2.IP(family), Dst: c.b1.IP(family),
				Proto: 17, SrcPort: 4000, DstPort: 4001, Payload: []byte(forgedMark),
			}
			frames = append(frames, p.Frame())
		}
	}
	return frames, inner
}

// TestAFloodFindsNoGapInAStart is case 43: a pod sends forged frames without pause,
// and a stranger forged tunnel packets, while both nodes' dataplanes are killed and
// replaced, and one whole daemon is started anew. Not one arrives, and honest ones
// do as soon as the node forwards again.
func TestAFloodFindsNoGapInAStart(t *testing.T) {
	c := newCluster(t)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]*lookout{"a2": lookFrom(t, c.a2), "b1": lookFrom(t, c.b1)}

	// A connection of a2's, whose tuple the forged frames use too.
	listenUDP(t, c.b1.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), 4001), func(_ netip.AddrPort, b []byte) []byte { return b })
	for _, family := range []int{4, 6} {
		conn, err := dial(c.a2.Namespace, "udp", netip.AddrPortFrom(c.a2.IP(family), 4000), netip.AddrPortFrom(c.b1.IP(family), 4001))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c.eventually("the neighbour's connection is known", func() error { _, err := askOn(conn); return err })
	}

	ctx, stop := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	defer floods.Wait()
	defer stop()
	frames, inner := forgeries(c)
	for _, to := range []*lab.Pod{c.a2, c.b1} {
		frames = append(frames, wiretest.Packet{
			SrcMAC: [6]byte(c.a1.MAC), DstMAC: [6]byte{0x02, 0x76, 0x73, 0x77, 0, 1}, Src: c.a1.IPv4, Dst: to.IPv4,
			Proto: 17, SrcPort: 4002, DstPort: 4003, Payload: []byte(honestMark),
		}.Frame())
	}
	raw := openRaw(t, c.a1)
	var sent atomic.Uint64
	floods.Go(func() {
		for ctx.Err() == nil {
			for _, f := range frames {
				// A full queue is no failure of a flood.
				if unix.Sendto(raw.fd, f, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: raw.ifindex}) == nil {
					sent.Add(1)
				}
			}
			time.Sleep(time.Millisecond) // the nodes need the processor too
		}
	})
	var conns []net.Conn
	for _, n := range c.nodes {
		conn, err := dial(outside.Namespace, "udp", netip.AddrPort{}, netip.AddrPortFrom(n.Underlay4, 8472))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	floods.Go(func() {
		for ctx.Err() == nil {
			for _, f := range inner {
				for _, conn := range conns {
					_, _ = conn.Write(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, f...)) // refused while nobody listens
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	forwards := func(when string) {
		t.Helper()
		for name, s := range seen {
			before := s.honest.Load()
			c.eventually(when+": honest frames reach "+name, func() error {
				if n := s.honest.Load(); n < before+20 {
					return fmt.Errorf("%d since then", n-before)
				}
				return nil
			})
		}
	}
	forwards("before")
	for round := range 6 {
		n := c.nodes[round%2]
		pid, err := n.Dataplane()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.eventually("another dataplane", func() error {
			p, err := n.Dataplane()
			if err == nil && p == pid {
				err = fmt.Errorf("still process %d", pid)
			}
			return err
		})
		forwards(fmt.Sprintf("round %d", round))
	}
	a := c.nodes[0]
	a.Daemon().Kill()
	if err := a.RestartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.reattach(a)
	forwards("the whole daemon was killed")

	stop()
	floods.Wait()
	refused := podDrops(t, a, "a1", "spoofed-ip") + podDrops(t, a, "a1", "spoofed-mac")
	t.Logf("%d frames sent; since the last start %d of the pod's refused, %d of strangers", sent.Load(), refused, nodeDrops(t, c.nodes[1])["not-member"])
	if refused == 0 || nodeDrops(t, c.nodes[1])["not-member"] == 0 {
		t.Error("nothing forged was refused: no flood")
	}
	for name, s := range seen {
		if n := s.forged.Load(); n != 0 {
			t.Errorf("%d forged frames reached %s, the first: %x", n, name, s.example)
		}
		if lost := s.lost(t); lost != 0 {
			t.Errorf("the capture in %s missed %d frames", name, lost)
		}
	}
}
