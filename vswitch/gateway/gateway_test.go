package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The addresses of every test here. Pods reach the host's loopback, where test
// servers listen, at hostV4 and hostV6.
var (
	pod4    = netip.MustParseAddr("10.244.1.5")
	pod6    = netip.MustParseAddr("fd00:10:244:1::5")
	router4 = netip.MustParseAddr("10.244.1.1")
	router6 = netip.MustParseAddr("fd00:10:244:1::1")
	hostV4  = netip.MustParseAddr("192.0.2.2")
	hostV6  = netip.MustParseAddr("2001:db8::2")
	mac     = frame.MAC{0x02, 0x76, 0x73, 0x77, 0x00, 0x01}
)

func testConfig(t testing.TB) Config {
	return Config{
		Queues: 2, MTUBytes: 1450, MAC: mac,
		Routers:      []netip.Addr{router4, router6},
		Cluster:      []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Service:      []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		IsLocalPod:   func(a netip.Addr) bool { return a == pod4 || a == pod6 },
		HostLoopback: []netip.Addr{hostV4, hostV6},
		NoNodePorts:  true,
		Affinity:     newAffinity(t),
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// start runs a gateway and a net of pods around it. The gateway closes before the
// net does, as a node does it.
func start(t testing.TB, change func(*Config)) (*Gateway, *gatewaytest.Net) {
	t.Helper()
	c := testConfig(t)
	if change != nil {
		change(&c)
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n := gatewaytest.New(t, g.Queue(0), g.Queue(1))
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, n
}

// family is one address family of a test's table.
type family struct {
	name         string
	pod, host    netip.Addr // as the pod knows them
	loopback     string     // where the host listens
	router       netip.Addr
	outside      netip.AddrPort // a client from elsewhere
	network, udp string
}

var families = []family{
	{"IPv4", pod4, hostV4, "127.0.0.1", router4, netip.MustParseAddrPort("198.51.100.7:40000"), "tcp4", "udp4"},
	{"IPv6", pod6, hostV6, "::1", router6, netip.MustParseAddrPort("[2001:db8:77::7]:40000"), "tcp6", "udp6"},
}

func eachFamily(t *testing.T, f func(t *testing.T, fam family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// hostServer listens on the host's loopback and serves each connection.
func hostServer(t testing.TB, fam family, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen(fam.network, net.JoinHostPort(fam.loopback, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return netip.AddrPortFrom(fam.host, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

// soon bounds what a test waits for; nothing here takes a tenth of it.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls a condition that comes true by itself.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// openFDs counts this process's descriptors.
func openFDs(t testing.TB) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
