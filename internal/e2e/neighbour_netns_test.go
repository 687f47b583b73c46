package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

// Cases 24 and 67: one pod sends small datagrams to addresses and ports that never
// repeat, as fast as it can. It fills its own share of the flow table and no more;
// another pod's messages are all answered, its p99 stays within a bound, and it gets
// new connections, to a service too.
func TestNoisyNeighbour(t *testing.T) {
	c := newCluster(t)
	near, far := c.pod(0, "near", map[string]string{"app": "echo"}), c.pod(1, "far", map[string]string{"app": "echo"})
	echo(t, near, 7)
	echo(t, far, 7)
	c.apply(echoService)
	vip := c.service("echo")
	c.eventually("the service answers", func() error {
		_, err := ask(c.a2.Namespace, "tcp", netip.AddrPortFrom(vip.ip(4), 70), "hello")
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	quiet, err := roundTrips(c, near.IPv4)
	if err != nil {
		t.Fatal(err)
	}

	flooding, stop := context.WithCancel(ctx)
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	var fd int
	if err := c.a1.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	src := c.a1.IPv4
	var sent int
	flood.Go(func() {
		defer unix.Close(fd)
		r := rand.New(rand.NewPCG(1, 2))
		for ; flooding.Err() == nil; sent++ {
			// Whatever pod of the cluster, and the world's documentation prefix.
			dst := netip.AddrFrom4([4]byte{10, 244, byte(r.IntN(2)), byte(2 + r.IntN(3))})
			if r.IntN(2) == 0 {
				dst = netip.AddrFrom4([4]byte{198, 51, 100, byte(r.Uint32())})
			}
			p := randomDatagram(r, src, dst)
			to := unix.SockaddrInet4{Addr: dst.As4()}
			_ = unix.Sendto(fd, p, unix.MSG_DONTWAIT, &to) // a full queue is no failure of a flood
		}
	})

	var noisy []time.Duration
	for range 5 {
		more, err := roundTrips(c, near.IPv4)
		if err != nil {
			t.Fatalf("beside a flood: %v", err)
		}
		noisy = append(noisy, more...)
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(vip.ip(4), 70), netip.AddrPortFrom(far.IPv6, 7), netip.AddrPortFrom(vip.ip(6), 70)} {
			if _, err := ask(c.a2.Namespace, "tcp", to, "hello"); err != nil {
				t.Errorf("a new connection to %v beside a flood: %v", to, err)
			}
		}
	}
	stop()
	flood.Wait()

	// Client, server, flood and switch share the machine's cores, so the bound is one
	// that a person notices, and not a multiple of a quiet machine's microseconds.
	const bound = 100 * time.Millisecond
	slices.Sort(quiet)
	slices.Sort(noisy)
	p99 := noisy[len(noisy)*99/100]
	t.Logf("%d datagrams; round trip p50 %v, p99 %v quiet; p50 %v, p99 %v beside the flood", sent,
		quiet[len(quiet)/2], quiet[len(quiet)*99/100], noisy[len(noisy)/2], p99)
	if p99 > bound {
		t.Errorf("p99 beside a flood is %v, want at most %v", p99, bound)
	}
	if sent < 1000 {
		t.Errorf("only %d datagrams were sent: no flood", sent)
	}
	var flows []struct{ Source string }
	get(t, c.nodes[0], "flows", &flows)
	owned := 0
	for _, f := range flows {
		if a, err := netip.ParseAddrPort(f.Source); err == nil && a.Addr() == src {
			owned++
		}
	}
	const perPod = 262144 / 8 // flow.DefaultConnections, an eighth for one owner
	if owned > perPod {
		t.Errorf("the flooding pod holds %d flows, want at most %d", owned, perPod)
	}
}

// roundTrips are the times that messages over one new connection took.
func roundTrips(c *cluster, to netip.Addr) ([]time.Duration, error) {
	conn, err := dial(c.a2.Namespace, "tcp", netip.AddrPort{}, netip.AddrPortFrom(to, 7))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var took []time.Duration
	for i := range 200 {
		began := time.Now()
		if err := echoes(conn, fmt.Sprintf("message %d", i)); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// randomDatagram is an IPv4 packet with UDP of random ports; the kernel fills in
// length and checksum of the header (raw(7)).
func randomDatagram(r *rand.Rand, src, dst netip.Addr) []byte {
	const total = wire.IPv4Bytes + wire.UDPBytes + 8
	b := make([]byte, total)
	b[0], b[8], b[9] = 4<<4|wire.IPv4Bytes/4, 64, wire.ProtoUDP
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	udp := b[wire.IPv4Bytes:]
	ports := r.Uint32()
	udp[0], udp[1], udp[2], udp[3] = byte(ports>>24), byte(ports>>16), byte(ports>>8), byte(ports)
	udp[5] = wire.UDPBytes + 8 // without a checksum, as UDP over IPv4 may be
	return b
}
