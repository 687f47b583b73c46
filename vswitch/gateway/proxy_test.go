package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"vswitch/internal/wire"
	"vswitch/vswitch/gateway/gatewaytest"
)

// Endpoints of the services in proxy mode here. Nobody has the fourth of a family.
var proxyPods = map[string][]netip.Addr{
	"IPv4": gatewaytest.Addrs("10.244.1.21", "10.244.1.22", "10.244.1.23", "10.244.1.24"),
	"IPv6": gatewaytest.Addrs("fd00:10:244:1::21", "fd00:10:244:1::22", "fd00:10:244:1::23", "fd00:10:244:1::24"),
}

// proxyBed is a client pod and, at both VIPs, a service in proxy mode.
type proxyBed struct {
	t      *testing.T
	g      *Gateway
	net    *gatewaytest.Net
	fam    family
	client *gatewaytest.Pod
	vip    netip.AddrPort
	pods   []netip.Addr
	svc    Service
}

func newProxyBed(t *testing.T, fam family, change func(*Config)) *proxyBed {
	b := &proxyBed{t: t, fam: fam, pods: proxyPods[fam.name], vip: netip.AddrPortFrom(vip4, 80)}
	if fam.pod.Is6() {
		b.vip = netip.AddrPortFrom(vip6, 80)
	}
	b.g, b.net = start(t, change)
	b.client = b.net.Pod(fam.pod.String())
	b.svc = web(0)
	b.svc.Proxy = &Proxy{}
	return b
}

// put gives the service these endpoints.
func (b *proxyBed) put(addrs ...netip.Addr) {
	b.t.Helper()
	b.svc.Endpoints = nil
	for i, a := range addrs {
		b.svc.Endpoints = append(b.svc.Endpoints, Endpoint{Addr: a, Port: 8080, ID: uint64(1 + i), Cluster: true})
	}
	if err := b.g.PutService(b.svc); err != nil {
		b.t.Fatal(err)
	}
}

// server is a pod that serves each connection to port 8080.
func (b *proxyBed) server(addr netip.Addr, serve func(*gonet.TCPConn)) {
	b.t.Helper()
	l := b.net.Pod(addr.String()).ListenTCP(netip.AddrPortFrom(addr, 8080))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*gonet.TCPConn))
			}()
		}
	}()
}

// echoing serves by sending back what comes.
func echoing(c *gonet.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

func (b *proxyBed) dial() (*gonet.TCPConn, error) { return b.client.DialTCP(soon(b.t), b.vip) }

func (b *proxyBed) stats() ProxyStats {
	b.t.Helper()
	all := b.g.ProxyStats()
	if len(all) != 1 {
		b.t.Fatalf("%d services in proxy mode, want 1", len(all))
	}
	return all[0]
}

func eachFamilyProxied(t *testing.T, change func(*Config), f func(b *proxyBed)) {
	eachFamily(t, func(t *testing.T, fam family) { f(newProxyBed(t, fam, change)) })
}

// swap sends a megabyte each way at once, half-closes, and checks what came.
func swap(t *testing.T, c interface {
	io.ReadWriter
	CloseWrite() error
}, size int) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	up.Wait()
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Fatalf("%d bytes came back (%v), not the %d sent", len(got), err, len(data))
	}
}

func TestProxyCarriesBytesBothWays(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		from := make(chan net.Addr, 1)
		b.server(b.pods[0], func(c *gonet.TCPConn) { from <- c.RemoteAddr(); echoing(c) })
		b.put(b.pods[0])
		c, err := b.dial()
		if err != nil {
			b.t.Fatal(err)
		}
		defer c.Close()
		const size = 3 << 20
		swap(b.t, c, size)
		if got := (<-from).(*net.TCPAddr).AddrPort().Addr(); got != b.fam.router {
			b.t.Errorf("the pod saw %v, want the router address %v", got, b.fam.router)
		}
		eventually(b.t, "the connection is over", func() bool { return b.stats().Open == 0 })
		want := ProxyStats{Service: b.svc.ServiceKey, Accepted: 1, ToEndpoints: size, ToClients: size}
		if got := b.stats(); got != want {
			b.t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// What the first endpoint's port does is no business of the client's: refused,
// or silent as one whose pod has gone, another answers.
func TestProxyTriesAnotherEndpoint(t *testing.T) {
	quick := func(c *Config) { c.DialTimeout = 300 * time.Millisecond }
	eachFamilyProxied(t, quick, func(b *proxyBed) {
		b.net.Pod(b.pods[0].String()) // refuses
		b.server(b.pods[1], func(c *gonet.TCPConn) { io.WriteString(c, "here") })
		b.put(b.pods[0], b.pods[1], b.pods[3]) // the last is silent
		const clients = 24                     // that none picks a given endpoint first: once in 17,000 runs
		for range clients {
			c, err := b.dial()
			if err != nil {
				b.t.Fatal(err)
			}
			if got, err := io.ReadAll(c); string(got) != "here" {
				b.t.Fatalf("got %q, %v", got, err)
			}
			c.Close()
		}
		if s := b.stats(); s.Accepted != clients || s.Refused != 0 || s.Retried == 0 || s.Retried > 2*clients {
			b.t.Errorf("%+v, want %d accepted, none refused, some retried", s, clients)
		}
	})
}

// A client learns at once that no endpoint answers, or that there is none.
func TestProxyRefuses(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		for _, a := range b.pods {
			b.net.Pod(a.String())
		}
		b.put(b.pods...)
		if _, err := b.dial(); !gatewaytest.Refused(err) {
			b.t.Errorf("none listens: %v, want refused", err)
		}
		if s := b.stats(); s.Refused != 1 || s.Retried != proxyTries-1 || s.Accepted != 0 {
			b.t.Errorf("%+v, want one refused after %d tries", s, proxyTries)
		}
		b.put()
		if _, err := b.dial(); !gatewaytest.Refused(err) {
			b.t.Errorf("no endpoint: %v, want refused", err)
		}
		if err := b.g.DeleteService(b.svc.ServiceKey); err != nil {
			b.t.Fatal(err)
		}
		if _, err := b.dial(); !gatewaytest.Refused(err) {
			b.t.Errorf("no service: %v, want refused", err)
		}
	})
}

// The header is judged by a library that reads it.
func TestProxyTellsTheClientsAddress(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		type seen struct {
			header *proxyproto.Header
			rest   string
		}
		got := make(chan seen, 1)
		b.server(b.pods[0], func(c *gonet.TCPConn) {
			r := bufio.NewReader(c)
			h, err := proxyproto.Read(r)
			if err != nil {
				b.t.Error(err)
			}
			rest, _ := io.ReadAll(r)
			got <- seen{h, string(rest)}
		})
		b.svc.Proxy.ProtocolV2 = true
		b.put(b.pods[0])
		c, err := b.dial()
		if err != nil {
			b.t.Fatal(err)
		}
		io.WriteString(c, "first bytes")
		c.CloseWrite()
		s := <-got
		if s.header == nil || s.header.Version != 2 || s.header.Command != proxyproto.PROXY || !s.header.TransportProtocol.IsStream() ||
			s.header.SourceAddr.String() != c.LocalAddr().String() || s.header.DestinationAddr.String() != b.vip.String() {
			b.t.Errorf("header %+v, want version 2 from %v to %v", s.header, c.LocalAddr(), b.vip)
		}
		if s.rest != "first bytes" {
			b.t.Errorf("after the header came %q", s.rest)
		}
		c.Close()
	})
}

// The sample of the specification's layout, byte by byte.
func TestProxyHeaderBytes(t *testing.T) {
	for _, tt := range []struct {
		client, asked, want string
	}{
		{"192.0.2.1:56324", "198.51.100.1:443",
			"0d0a0d0a000d0a515549540a 21 11 000c c0000201 c6336401 dc04 01bb"},
		{"[2001:db8::1]:1", "[2001:db8::2]:65535",
			"0d0a0d0a000d0a515549540a 21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 0001 ffff"},
	} {
		got := appendProxyHeader(nil, netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.asked))
		if hex := fmt.Sprintf("%x", got); hex != string(bytes.ReplaceAll([]byte(tt.want), []byte(" "), nil)) {
			t.Errorf("%s to %s: %s, want %s", tt.client, tt.asked, hex, tt.want)
		}
		if len(got) > proxyMaxBytes {
			t.Errorf("%d bytes, more than the %d said", len(got), proxyMaxBytes)
		}
	}
}

func TestProxyPassesResetsOn(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		served := make(chan *gonet.TCPConn, 2)
		b.server(b.pods[0], func(c *gonet.TCPConn) { served <- c; io.Copy(io.Discard, c) })
		b.put(b.pods[0])
		c, err := b.dial()
		if err != nil {
			b.t.Fatal(err)
		}
		<-served
		b.put() // the endpoint is removed: its pod may be gone without a word
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			b.t.Errorf("the endpoint was removed: %v, want a reset", err)
		}
		eventually(b.t, "the connection is over", func() bool { return b.stats().Open == 0 })

		b.put(b.pods[0])
		if _, err := b.dial(); err != nil {
			b.t.Fatal(err)
		}
		<-served
		b.net.AbortPods()
		eventually(b.t, "the connection is over", func() bool { return b.stats().Open == 0 })
	})
}

// A client that has finished sending still gets all that the endpoint has to say,
// and the other way round; an idle half-closed connection ends.
func TestProxyHalfClosed(t *testing.T) {
	short := func(c *Config) { c.TCPHalfClosedIdle = tickInterval }
	eachFamilyProxied(t, short, func(b *proxyBed) {
		hold := make(chan struct{})
		defer close(hold)
		b.server(b.pods[0], func(c *gonet.TCPConn) {
			io.WriteString(c, "bye")
			c.CloseWrite()
			<-hold
		})
		b.put(b.pods[0])
		c, err := b.dial()
		if err != nil {
			b.t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); string(got) != "bye" || err != nil {
			b.t.Fatalf("got %q, %v", got, err)
		}
		eventually(b.t, "the idle half-closed connection ends", func() bool { return b.stats().Open == 0 })
	})
}

func TestProxyKeepsThePodsCap(t *testing.T) {
	capped := func(c *Config) { c.ConnectionsPerPod = 2 }
	eachFamilyProxied(t, capped, func(b *proxyBed) {
		b.server(b.pods[0], echoing)
		b.put(b.pods[0])
		for i := range 3 {
			c, err := b.dial()
			if i < 2 && err != nil || i == 2 && !gatewaytest.Refused(err) {
				b.t.Fatalf("connection %d: %v", i, err)
			}
			if err == nil {
				defer c.Close()
			}
		}
	})
}

// Where no memory is left for buffers a connection is reset, and nothing is kept.
func TestProxyKeepsWithinMemory(t *testing.T) {
	tight := func(c *Config) { c.MemoryBytes = 4 * leastBufferBytes }
	eachFamilyProxied(t, tight, func(b *proxyBed) {
		b.server(b.pods[0], echoing)
		b.put(b.pods[0])
		c, err := b.dial()
		if err == nil { // the client may hear of it a moment later
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
			b.t.Errorf("got %v, want a reset", err)
		}
		eventually(b.t, "the connection is over", func() bool { return b.stats().Open == 0 })
		if n := b.g.Stats().MemoryCapped; n != 1 {
			b.t.Errorf("%d connections refused for memory, want 1", n)
		}
	})
}

// An endpoint outside the cluster is reached through the host, as an outside
// client's connection comes from it.
func TestProxyByTheHost(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		at := hostServer(b.t, b.fam, echo)
		b.svc.Endpoints = []Endpoint{{Addr: at.Addr(), Port: at.Port(), ID: 1, Cluster: true}}
		if err := b.g.PutService(b.svc); err != nil {
			b.t.Fatal(err)
		}
		c, err := b.dial()
		if err != nil {
			b.t.Fatal(err)
		}
		swap(b.t, c, 1<<20)
		c.Close()
		eventually(b.t, "the connection is over", func() bool { return b.stats().Open == 0 })
		if s := b.stats(); s.ToEndpoints != 1<<20 || s.ToClients != 1<<20 || s.Accepted != 1 {
			b.t.Errorf("%+v", s)
		}
	})
}

func TestProxyServesClientsOutside(t *testing.T) {
	eachFamilyProxied(t, onLoopback, func(b *proxyBed) {
		b.net.Pod(b.pods[0].String()) // refuses
		b.server(b.pods[1], func(c *gonet.TCPConn) {
			h, err := proxyproto.Read(bufio.NewReader(c))
			if err != nil {
				b.t.Error(err)
				return
			}
			fmt.Fprint(c, h.SourceAddr, " ", h.DestinationAddr)
		})
		b.svc.NodePort, b.svc.Proxy.ProtocolV2 = freePort(b.t), true
		b.put(b.pods[0], b.pods[1])
		to := b.fam.hostPort(b.svc.NodePort)
		const clients = 12
		for range clients {
			c, err := net.Dial("tcp", to)
			if err != nil {
				b.t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if want := fmt.Sprint(c.LocalAddr(), " ", to); string(got) != want {
				b.t.Fatalf("the pod was told %q (%v), want %q", got, err, want)
			}
			c.Close()
		}
		if s := b.stats(); s.Accepted != clients || s.Refused != 0 {
			b.t.Errorf("%+v, want %d accepted", s, clients)
		}
	})
}

// Affinity holds in proxy mode, and follows the client to the endpoint that
// answered instead.
func TestProxyAffinity(t *testing.T) {
	eachFamilyProxied(t, nil, func(b *proxyBed) {
		var mu sync.Mutex
		var order []int
		for i := range 3 {
			b.server(b.pods[i], func(*gonet.TCPConn) { mu.Lock(); order = append(order, i); mu.Unlock() })
		}
		b.svc.Affinity = time.Hour
		once := func() {
			c, err := b.dial()
			if err != nil {
				b.t.Fatal(err)
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
		b.net.Pod(b.pods[3].String()) // refuses
		b.put(b.pods[3])
		if _, err := b.dial(); err == nil {
			b.t.Fatal("accepted")
		}
		b.svc.Endpoints = nil
		b.put(b.pods[3], b.pods[0], b.pods[1], b.pods[2]) // the client is pinned to the first
		for range 10 {
			once()
		}
		mu.Lock()
		defer mu.Unlock()
		if len(order) != 10 || len(slices.Compact(order)) != 1 {
			b.t.Errorf("endpoints %v, want the same ten times", order)
		}
		if s := b.stats(); s.Retried != 1 {
			b.t.Errorf("%d retried, want the first time only", s.Retried)
		}
	})
}

// Services in and out of proxy mode; what was counted stays while it is in it.
func TestProxyModeIsSwitched(t *testing.T) {
	g := newTestGateway(t, nil)
	s := web(1)
	k := keyTo(vip4, 80, wire.ProtoTCP)
	for i, proxy := range []*Proxy{nil, {}, {ProtocolV2: true}, nil} {
		s.Proxy = proxy
		if err := g.PutService(s); err != nil {
			t.Fatal(err)
		}
		ep, _ := g.Pick(k, nil)
		if ep.Gateway != (proxy != nil) || ep.Gateway && (ep.Addr != k.Dst || ep.Port != k.DstPort) {
			t.Errorf("step %d: picked %+v", i, ep)
		}
		if n := len(g.ProxyStats()); (n == 1) != (proxy != nil) {
			t.Errorf("step %d: %d services in proxy mode", i, n)
		}
	}
	s.Proxy, s.Protocol = &Proxy{}, wire.ProtoUDP
	if err := g.PutService(s); err != nil {
		t.Fatal(err)
	}
	if ep, _ := g.Pick(keyTo(vip4, 80, wire.ProtoUDP), nil); ep.Gateway {
		t.Error("a UDP service is proxied")
	}
}

// BenchmarkProxy is a stream through two connections of the netstack, between
// netstacks: all four ends share the cores.
func BenchmarkProxy(b *testing.B) {
	g, n := start(b, nil)
	client, server := n.Pod(pod4.String()), n.Pod("10.244.1.21")
	l := server.ListenTCP(netip.MustParseAddrPort("10.244.1.21:8080"))
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	s := web(0)
	s.Proxy = &Proxy{}
	s.Endpoints = []Endpoint{{Addr: netip.MustParseAddr("10.244.1.21"), Port: 8080, ID: 1, Cluster: true}}
	if err := g.PutService(s); err != nil {
		b.Fatal(err)
	}
	c, err := client.DialTCP(context.Background(), netip.AddrPortFrom(vip4, 80))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := c.Write(data); err != nil {
			b.Fatal(err)
		}
	}
}
