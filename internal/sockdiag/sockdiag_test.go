package sockdiag

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t testing.TB) int {
	t.Helper()
	fd, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestListenersAreListed(t *testing.T) {
	fd := open(t)
	buf := make([]byte, 32<<10)
	for _, tt := range []struct {
		network, addr string
		want          Listener // but for the port
	}{
		{"tcp4", "127.0.0.1:0", Listener{Addr: netip.MustParseAddr("127.0.0.1")}},
		{"tcp4", "0.0.0.0:0", Listener{Addr: netip.IPv4Unspecified()}},
		{"tcp", ":0", Listener{Addr: netip.IPv6Unspecified(), V4: true}},
		{"tcp6", "[::]:0", Listener{Addr: netip.IPv6Unspecified()}},
		{"tcp6", "[::1]:0", Listener{Addr: netip.IPv6Loopback()}},
	} {
		l, err := net.Listen(tt.network, tt.addr)
		if err != nil {
			t.Skipf("%s %s: %v", tt.network, tt.addr, err)
		}
		want := tt.want
		want.Port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		all, err := List(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		// What IPv6 address but :: takes IPv4 is of no interest.
		if !slices.ContainsFunc(all, func(l Listener) bool { l.V4 = l.V4 && l.Addr.IsUnspecified(); return l == want }) {
			t.Errorf("%s %s: no %+v in %+v", tt.network, tt.addr, want, all)
		}
		l.Close()
		if all, err = List(fd, buf); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(all, func(l Listener) bool { return !l.UDP && l.Port == want.Port && l.Addr == want.Addr }) {
			t.Errorf("%s %s: still listed when closed", tt.network, tt.addr)
		}
	}
}

func TestDatagramSocketsWithAPeerAreNot(t *testing.T) {
	fd := open(t)
	bound, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer bound.Close()
	peer, err := net.DialUDP("udp4", nil, bound.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	all, err := List(fd, make([]byte, 32<<10))
	if err != nil {
		t.Fatal(err)
	}
	has := func(c *net.UDPConn) bool {
		at := c.LocalAddr().(*net.UDPAddr).AddrPort()
		return slices.Contains(all, Listener{Addr: at.Addr().Unmap(), Port: at.Port(), UDP: true})
	}
	if !has(bound) || has(peer) {
		t.Errorf("listed: bound %t, with a peer %t; want true, false", has(bound), has(peer))
	}
}

func TestAnAnswerNobodyReadIsNoAnswer(t *testing.T) {
	fd := open(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := ask(fd, unix.AF_INET, unix.IPPROTO_TCP); err != nil {
		t.Fatal(err)
	}
	if _, err := List(fd, make([]byte, 32<<10)); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(make([]byte, 120))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _, _ := parse(b, nil)
		if len(all)*messageBytes > len(b) {
			t.Errorf("%d listeners of %d bytes", len(all), len(b))
		}
	})
}

// BenchmarkList is what it costs to ask.
func BenchmarkList(b *testing.B) {
	fd := open(b)
	buf := make([]byte, 32<<10)
	for b.Loop() {
		if _, err := List(fd, buf); err != nil {
			b.Fatal(err)
		}
	}
}
