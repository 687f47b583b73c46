package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/bound"
	"vswitch/internal/fdstore"
	"vswitch/internal/wire"
)

const lowPort = 80

// unprivileged is a gateway that may not open ports below 1024, whatever this test may.
func unprivileged(t *testing.T, instead uint16, more func(*Config)) *Gateway {
	g := newTestGateway(t, func(c *Config) {
		onHost(c)
		c.LowPortOffset = instead - lowPort
		if more != nil {
			more(c)
		}
	})
	g.listeners.open = openUnprivileged
	return g
}

func openUnprivileged(network string, at netip.AddrPort) (int, error) {
	if at.Port() < 1024 {
		return -1, fmt.Errorf("bind %v: %w", at, unix.EACCES)
	}
	return bound.Open(network, at)
}

// listener is what became of a port at hostA.
func listener(t *testing.T, g *Gateway, port uint16) ListenerStatus {
	t.Helper()
	all := g.Listeners()
	i := slices.IndexFunc(all, func(s ListenerStatus) bool { return s.Addr == netip.AddrPortFrom(hostA, port) })
	if i < 0 {
		t.Fatalf("port %d is not among %v", port, all)
	}
	return all[i]
}

// isOpen reports whether somebody has the port at hostA.
func isOpen(t *testing.T, network string, port uint16) bool {
	t.Helper()
	fd, err := bound.Open(network, netip.AddrPortFrom(hostA, port))
	if err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, unix.EADDRINUSE) {
		t.Fatal(err)
	}
	return err != nil
}

func TestALowPortIsOpenAtAnother(t *testing.T) {
	for _, proto := range []uint8{wire.ProtoTCP, wire.ProtoUDP} {
		network := protocolName(proto)
		t.Run(network, func(t *testing.T) {
			var kept fdstore.Memory
			defer kept.Close()
			instead := freePort(t)
			g := unprivileged(t, instead, func(c *Config) { c.Keeper = &kept })
			low := byPod("low", hostA, lowPort, proto, pod4)
			if err := g.PutHostPort(low); err != nil {
				t.Fatal(err)
			}
			if s := listener(t, g, lowPort); s.Err != nil || s.OpenAt != instead || !isOpen(t, network, instead) {
				t.Fatalf("%+v, want it open at %d", s, instead)
			}
			g.listeners.refresh() // which closes what nobody wants
			if names := keptListeners(t, &kept); !slices.Equal(names, []string{keptName(network, netip.AddrPortFrom(hostA, instead))}) {
				t.Errorf("kept %v, want the port that is open", names)
			}

			// Who asks for that port itself goes first.
			own := byPod("own", hostA, instead, proto, pod4)
			if err := g.PutHostPort(own); err != nil {
				t.Fatal(err)
			}
			if s := listener(t, g, instead); s.Err != nil || s.OpenAt != instead {
				t.Errorf("%+v, want it open", s)
			}
			if s := listener(t, g, lowPort); s.OpenAt != 0 || !errors.Is(s.Err, unix.EACCES) || !strings.Contains(s.Err.Error(), "taken by the host port of own") {
				t.Errorf("%+v, want to be told who has the port in its stead", s)
			}
			g.DeleteHostPort(own.HostPortKey)
			if s := listener(t, g, lowPort); s.Err != nil || s.OpenAt != instead {
				t.Errorf("%+v, want it open again at %d", s, instead)
			}

			g.DeleteHostPort(low.HostPortKey)
			if isOpen(t, network, instead) {
				t.Error("open still when nobody wants it")
			}
			if names := keptListeners(t, &kept); len(names) != 0 {
				t.Errorf("kept %v of a port that was closed", names)
			}
		})
	}
}

// The client of a low port is served as any other.
func TestALowPortLeadsToItsPod(t *testing.T) {
	instead := freePort(t)
	g, n := start(t, func(c *Config) {
		onHost(c)
		c.LowPortOffset = instead - lowPort
	})
	g.listeners.open = openUnprivileged
	from := podServer(n, families[0])
	if err := g.PutHostPort(byPod("low", hostA, lowPort, wire.ProtoTCP, families[0].pod)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", netip.AddrPortFrom(hostA, instead).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	<-from
}

func TestALowPortStaysClosed(t *testing.T) {
	taken, err := net.Listen("tcp", netip.AddrPortFrom(hostA, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := taken.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, tt := range []struct {
		name    string
		instead uint16
		want    error
	}{
		{"where nothing stands for it", lowPort, unix.EACCES},
		{"where another program has the port in its stead", busy, unix.EADDRINUSE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := unprivileged(t, tt.instead, nil)
			if err := g.PutHostPort(byPod("low", hostA, lowPort, wire.ProtoTCP, pod4)); err != nil {
				t.Fatal(err)
			}
			if s := listener(t, g, lowPort); s.OpenAt != 0 || !errors.Is(s.Err, tt.want) || !errors.Is(s.Err, unix.EACCES) {
				t.Errorf("%+v, want %v", s, tt.want)
			}
		})
	}
}

// A port that whoever binds for this process finds taken is not one that may not be opened.
func TestATakenLowPortIsNotOpenedElsewhere(t *testing.T) {
	instead := freePort(t)
	g := unprivileged(t, instead, func(c *Config) {
		c.Bind = func(_ string, at netip.AddrPort) (int, error) {
			return -1, fmt.Errorf("keeper: bind %v: %w", at, unix.EADDRINUSE)
		}
	})
	if err := g.PutHostPort(byPod("low", hostA, lowPort, wire.ProtoTCP, pod4)); err != nil {
		t.Fatal(err)
	}
	if s := listener(t, g, lowPort); s.OpenAt != 0 || !errors.Is(s.Err, unix.EADDRINUSE) || isOpen(t, "tcp", instead) {
		t.Errorf("%+v, want it closed", s)
	}
}
