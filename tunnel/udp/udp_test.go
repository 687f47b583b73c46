//go:build linux

package udp_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
)

var loopbacks = map[string]netip.Addr{
	"IPv4": netip.AddrFrom4([4]byte{127, 0, 0, 1}),
	"IPv6": netip.IPv6Loopback(),
}

// forEachFamily runs a test over both underlays; a host may lack IPv6.
func forEachFamily(t *testing.T, f func(t *testing.T, local netip.Addr)) {
	for name, local := range loopbacks {
		t.Run(name, func(t *testing.T) {
			if c, err := net.ListenPacket("udp", netip.AddrPortFrom(local, 0).String()); err != nil {
				t.Skipf("this host can't bind %v: %v", local, err)
			} else {
				c.Close()
			}
			f(t, local)
		})
	}
}

func listen(t testing.TB, local netip.Addr, offload bool) *udp.Conn {
	t.Helper()
	c, err := udp.Listen(udp.Config{Local: netip.AddrPortFrom(local, 0), Offload: offload})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// datagram is what a receiver saw.
type datagram struct {
	from udp.Addr
	tos  uint8
	data []byte
}

// receive waits for n datagrams, and takes what comes with them.
func receive(t testing.TB, c *udp.Conn, n int) (got []datagram, messages int) {
	t.Helper()
	for len(got) < n {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}, 5000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || ready == 0 {
			t.Fatalf("%d of %d datagrams after 5 s (%v)", len(got), n, err)
		}
		k, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i := range k {
			m := c.Message(i)
			messages++
			for at := 0; at == 0 || at < len(m.Data); at += m.SegmentBytes {
				got = append(got, datagram{m.From, m.TOS, bytes.Clone(m.Data[at:min(at+m.SegmentBytes, len(m.Data))])})
			}
		}
	}
	return got, messages
}

func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Every mix of sizes arrives whole, in order and in the pieces it was sent in,
// with trains and without on either side.
func TestDatagramsArriveAsStaged(t *testing.T) {
	mixes := map[string][]int{
		"one":                      {100},
		"empty":                    {0},
		"empty among others":       {50, 50, 0, 50, 0, 0, 50},
		"equal":                    {1450, 1450, 1450, 1450},
		"train with a short tail":  {1450, 1450, 1450, 7, 1450},
		"growing":                  {1, 2, 3, 4, 5},
		"shrinking":                {5, 4, 3, 2, 1},
		"more than a train":        repeat(200, 150),
		"more than 64 KiB":         repeat(1450, 100),
		"more than a flush":        repeat(64, 700),
		"largest for loopback":     {65536 - 48, 10, 65536 - 48}, // its MTU less IPv6 and UDP headers
		"largest that are no pair": {40000, 40000},
	}
	forEachFamily(t, func(t *testing.T, local netip.Addr) {
		for _, sendTrains := range []bool{true, false} {
			for _, receiveTrains := range []bool{true, false} {
				for name, sizes := range mixes {
					t.Run(fmt.Sprintf("%s, trains sent %v received %v", name, sendTrains, receiveTrains), func(t *testing.T) {
						from, to := listen(t, local, sendTrains), listen(t, local, receiveTrains)
						dest := udp.NewDest(to.Local())
						lost := make([]drop.Reason, len(sizes))
						var want [][]byte
						for i, n := range sizes {
							data := random(n, uint64(i))
							head := from.Scratch(min(n, 58))
							copy(head, data)
							from.Stage(dest, 0, head, data[len(head):], &lost[i])
							want = append(want, data)
						}
						from.Flush()
						for i, r := range lost {
							if r != drop.None {
								t.Fatalf("datagram %d: %v", i, r)
							}
						}
						got, _ := receive(t, to, len(sizes))
						if len(got) != len(want) {
							t.Fatalf("%d datagrams, want %d", len(got), len(want))
						}
						for i := range got {
							if !bytes.Equal(got[i].data, want[i]) {
								t.Fatalf("datagram %d: %d bytes, want %d, or other content", i, len(got[i].data), len(want[i]))
							}
							if got[i].from != udp.AddrFrom(from.Local()) {
								t.Fatalf("from %v, want %v", got[i].from, from.Local())
							}
						}
					})
				}
			}
		}
	})
}

func repeat(n, times int) []int {
	s := make([]int, times)
	for i := range s {
		s[i] = n
	}
	return s
}

func TestTrainsTravelAsOne(t *testing.T) {
	forEachFamily(t, func(t *testing.T, local netip.Addr) {
		from, to := listen(t, local, true), listen(t, local, true)
		var lost drop.Reason
		dest := udp.NewDest(to.Local())
		for range 40 {
			from.Stage(dest, 0, make([]byte, 1000), nil, &lost)
		}
		from.Flush()
		if _, messages := receive(t, to, 40); messages != 1 {
			t.Errorf("40 datagrams came in %d messages, want 1", messages)
		}
	})
}

func TestTOSCrossesAndSplitsTrains(t *testing.T) {
	forEachFamily(t, func(t *testing.T, local netip.Addr) {
		from, to := listen(t, local, true), listen(t, local, true)
		var lost drop.Reason
		dest := udp.NewDest(to.Local())
		want := []uint8{0, 1, 1, 2, 3, 3, 3, 0}
		for _, tos := range want {
			from.Stage(dest, tos, make([]byte, 100), nil, &lost)
		}
		from.Flush()
		got, _ := receive(t, to, len(want))
		for i := range got {
			if got[i].tos != want[i] {
				t.Errorf("datagram %d has TOS %d, want %d", i, got[i].tos, want[i])
			}
		}
	})
}

func TestLostDatagramsSayWhy(t *testing.T) {
	local := loopbacks["IPv4"]
	from, to := listen(t, local, true), listen(t, local, false)
	good := udp.NewDest(to.Local())
	// RFC 5737 addresses have a route or not; the class E broadcast never passes a socket without SO_BROADCAST.
	bad := udp.NewDest(netip.MustParseAddrPort("255.255.255.255:9"))
	var tooBig, refused, between, after drop.Reason
	from.Stage(good, 0, make([]byte, udp.MaxDatagramBytes+1), nil, &tooBig)
	from.Stage(good, 0, []byte("between"), nil, &between)
	from.Stage(bad, 0, []byte("refused"), nil, &refused)
	from.Stage(good, 0, []byte("after"), nil, &after)
	from.Flush()
	if tooBig != drop.TooBig || refused != drop.EgressDown || between != drop.None || after != drop.None {
		t.Errorf("got %v, %v, %v, %v; want too-big, egress-down, none, none", tooBig, refused, between, after)
	}
	if got, _ := receive(t, to, 2); string(got[1].data) != "after" {
		t.Errorf("second datagram is %q: a failure stopped what came after it", got[1].data)
	}
}

func TestClosedSocketLosesWithAReason(t *testing.T) {
	from, to := listen(t, loopbacks["IPv4"], true), listen(t, loopbacks["IPv4"], true)
	from.Close()
	if err := from.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	var lost drop.Reason
	from.Stage(udp.NewDest(to.Local()), 0, []byte("x"), nil, &lost)
	from.Flush()
	if lost != drop.EgressDown {
		t.Errorf("got %v, want %v", lost, drop.EgressDown)
	}
	if _, err := from.Receive(); !errors.Is(err, udp.ErrClosed) {
		t.Errorf("Receive: %v, want ErrClosed", err)
	}
}

func TestSenderSharesThePort(t *testing.T) {
	from, to := listen(t, loopbacks["IPv4"], true), listen(t, loopbacks["IPv4"], true)
	s, err := from.Sender(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	from.Close()
	var lost drop.Reason
	s.Stage(udp.NewDest(to.Local()), 0, []byte("x"), nil, &lost)
	s.Flush()
	if got, _ := receive(t, to, 1); got[0].from != udp.AddrFrom(from.Local()) {
		t.Errorf("from %v, want %v", got[0].from, from.Local())
	}
	if n, err := s.Receive(); n != 0 || err != nil {
		t.Errorf("a sender received %d, %v", n, err)
	}
}

// TestASocketKeptGoesOn takes over a socket, with what came in meanwhile and with the
// buffers it has, which this process may not be allowed to ask for.
func TestASocketKeptGoesOn(t *testing.T) {
	forEachFamily(t, func(t *testing.T, local netip.Addr) {
		before := listen(t, local, true)
		have, err := unix.GetsockoptInt(before.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := unix.FcntlInt(uintptr(before.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := before.Local()
		before.Close()
		from, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		if _, err := from.Write([]byte("meanwhile")); err != nil {
			t.Fatal(err)
		}
		after, err := udp.Listen(udp.Config{Local: at, Socket: kept, Offload: true, BufferBytes: 4096})
		if err != nil {
			t.Fatal(err)
		}
		defer after.Close()
		if got, _ := receive(t, after, 1); string(got[0].data) != "meanwhile" {
			t.Errorf("got %q", got[0].data)
		}
		now, err := unix.GetsockoptInt(after.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if mayForce := unix.SetsockoptInt(after.FD(), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096) == nil; err != nil || !mayForce && now != have {
			t.Errorf("the buffer had %d bytes and has %d, %v", have, now, err)
		}
	})
}

func TestListenRefusesNonsense(t *testing.T) {
	taken := listen(t, loopbacks["IPv4"], false)
	tests := []struct {
		name string
		cfg  udp.Config
		is   error
	}{
		{name: "no address"},
		{name: "wildcard", cfg: udp.Config{Local: netip.MustParseAddrPort("0.0.0.0:0")}},
		{name: "multicast", cfg: udp.Config{Local: netip.MustParseAddrPort("[ff02::1]:0")}},
		{name: "zone", cfg: udp.Config{Local: netip.MustParseAddrPort("[fe80::1%lo]:0")}},
		{name: "negative buffer", cfg: udp.Config{Local: netip.MustParseAddrPort("127.0.0.1:0"), BufferBytes: -1}},
		{name: "an address that is not ours", cfg: udp.Config{Local: netip.MustParseAddrPort("192.0.2.77:0")}, is: unix.EADDRNOTAVAIL},
		{name: "a port that is taken", cfg: udp.Config{Local: taken.Local()}, is: unix.EADDRINUSE},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := udp.Listen(tt.cfg)
			if err == nil {
				c.Close()
				t.Fatal("opened")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
		})
	}
}

func TestVerifyGSO(t *testing.T) {
	forEachFamily(t, func(t *testing.T, local netip.Addr) {
		if err := udp.VerifyGSO(local); err != nil {
			t.Errorf("this kernel's segmentation offload: %v", err)
		}
	})
}

func TestOverflowIsCounted(t *testing.T) {
	from := listen(t, loopbacks["IPv4"], false)
	to, err := udp.Listen(udp.Config{Local: netip.MustParseAddrPort("127.0.0.1:0"), BufferBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	dest := udp.NewDest(to.Local())
	var lost drop.Reason
	for range 100 {
		from.Stage(dest, 0, make([]byte, 1400), nil, &lost)
	}
	from.Flush()
	got, _ := receive(t, to, 1)
	if n := to.Stats().ReceiveOverflow; int(n)+len(got) != 100 {
		t.Errorf("%d received, %d counted as overflow, want 100 in all", len(got), n)
	}
}

func TestNothingAllocates(t *testing.T) {
	for _, trains := range []bool{true, false} {
		t.Run(fmt.Sprintf("trains %v", trains), func(t *testing.T) {
			from, to := listen(t, loopbacks["IPv4"], trains), listen(t, loopbacks["IPv4"], trains)
			dest := udp.NewDest(to.Local())
			data := make([]byte, 1400)
			lost := new(drop.Reason)
			n := testing.AllocsPerRun(50, func() {
				for range 40 {
					from.Stage(dest, 2, from.Scratch(50), data, lost)
				}
				from.Flush()
				for left := 40; left > 0; { // loopback delivers within the send
					k, err := to.Receive()
					if k == 0 || err != nil {
						t.Fatalf("nothing to receive: %v", err)
					}
					for i := range k {
						m := to.Message(i)
						left -= (len(m.Data) + m.SegmentBytes - 1) / m.SegmentBytes
					}
				}
			})
			if n != 0 {
				t.Errorf("%v allocations for 40 datagrams", n)
			}
		})
	}
}

func benchmarkLoopback(b *testing.B, size, perRound int, trains bool) {
	from, to := listen(b, loopbacks["IPv4"], trains), listen(b, loopbacks["IPv4"], trains)
	dest := udp.NewDest(to.Local())
	data := make([]byte, size-50)
	lost := new(drop.Reason)
	b.SetBytes(int64(size * perRound))
	for b.Loop() {
		for range perRound {
			from.Stage(dest, 0, from.Scratch(50), data, lost)
		}
		from.Flush()
		for left := perRound; left > 0; {
			k, err := to.Receive()
			if err != nil || k == 0 {
				b.Fatalf("lost %d datagrams: %v", left, err)
			}
			for i := range k {
				m := to.Message(i)
				left -= (len(m.Data) + m.SegmentBytes - 1) / m.SegmentBytes
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*perRound), "ns/datagram")
}

func BenchmarkLoopback1450BytesTrainsOf45(b *testing.B) { benchmarkLoopback(b, 1450, 45, true) }
func BenchmarkLoopback1450BytesAlone(b *testing.B)      { benchmarkLoopback(b, 1450, 45, false) }
func BenchmarkLoopback64BytesTrainsOf64(b *testing.B)   { benchmarkLoopback(b, 64, 64, true) }
func BenchmarkLoopback64BytesAlone(b *testing.B)        { benchmarkLoopback(b, 64, 64, false) }

// A socket without checksums is refused trains (EINVAL), as broken kernels refuse them.
func TestRefusedTrainsGoAlone(t *testing.T) {
	from, to := listen(t, loopbacks["IPv4"], true), listen(t, loopbacks["IPv4"], true)
	if err := unix.SetsockoptInt(from.FD(), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	dest := udp.NewDest(to.Local())
	var lost drop.Reason
	for round := range 2 {
		for i := range 10 {
			from.Stage(dest, 2, []byte{byte(i)}, make([]byte, 99), &lost)
		}
		from.Flush()
		got, _ := receive(t, to, 10)
		for i := range got {
			if got[i].data[0] != byte(i) || got[i].tos != 2 {
				t.Fatalf("round %d: datagram %d is %d with TOS %d", round, i, got[i].data[0], got[i].tos)
			}
		}
	}
	if lost != drop.None {
		t.Errorf("lost: %v", lost)
	}
	if n := from.Stats().GSORefused; n != 1 {
		t.Errorf("refusal counted %d times, want once for the destination", n)
	}
}
