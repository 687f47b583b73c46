package gateway

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/bound"
	"vswitch/internal/fdstore"
	"vswitch/internal/wire"
)

// listenUDPAt is a node port's socket.
func listenUDPAt(at netip.AddrPort) (*hostSocket, error) {
	fd, err := bound.Open("udp", at)
	if err != nil {
		return nil, err
	}
	return newHostSocket(fd, kindOf(false, at.Addr().Is6()))
}

func keptListeners(t *testing.T, kept *fdstore.Memory) []string {
	t.Helper()
	names, err := kept.Names()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, keptPrefix) })
}

// A host port stays open while one gateway goes and the next comes: a client that
// comes meanwhile waits. It is closed when nobody wants it any more.
func TestListenersOutliveTheGateway(t *testing.T) {
	for _, proto := range []uint8{wire.ProtoTCP, wire.ProtoUDP} {
		t.Run(protocolName(proto), func(t *testing.T) {
			var kept fdstore.Memory
			defer kept.Close()
			keep := func(c *Config) { onHost(c); c.Keeper = &kept }
			port := freePort(t)
			want := byPod("kept", hostA, port, proto, pod4)
			at := netip.AddrPortFrom(hostA, port)

			first := newTestGateway(t, keep)
			if err := first.PutHostPort(want); err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if names := keptListeners(t, &kept); !slices.Equal(names, []string{keptName(protocolName(proto), at)}) {
				t.Fatalf("kept %v, want the port", names)
			}
			if fd, err := bound.Open(protocolName(proto), at); err == nil {
				unix.Close(fd)
				t.Fatal("the port was free between two gateways")
			}
			client, err := net.Dial(protocolName(proto), at.String())
			if err != nil {
				t.Fatalf("a client between two gateways: %v", err)
			}
			defer client.Close()

			second := newTestGateway(t, keep)
			if err := second.PutHostPort(want); err != nil {
				t.Fatal(err)
			}
			if open := openAt(second, func(*ListenerStatus) bool { return true }); !slices.Equal(open, []netip.Addr{hostA}) {
				t.Errorf("open at %v, want %v", open, hostA)
			}
			second.listeners.refresh()
			if names := keptListeners(t, &kept); len(names) != 1 {
				t.Errorf("kept %v, want the port that is open", names)
			}
			second.DeleteHostPort(want.HostPortKey)
			if names := keptListeners(t, &kept); len(names) != 0 {
				t.Errorf("kept %v of a port that was closed", names)
			}
			fd, err := bound.Open(protocolName(proto), at)
			if err != nil {
				t.Fatalf("the port is not free after all: %v", err)
			}
			// What an earlier gateway had and this one does not want is closed in a moment.
			if err := errors.Join(kept.Put(keptName(protocolName(proto), at), []int{fd}), unix.Close(fd)); err != nil {
				t.Fatal(err)
			}
			second.listeners.tidied = false
			second.listeners.refresh()
			if names := keptListeners(t, &kept); len(names) != 0 {
				t.Errorf("kept %v that nobody wants", names)
			}
		})
	}
}

// Where the process may not open a port, whoever keeps its descriptors does.
func TestPortsThatNeedPrivilegeAreAskedFor(t *testing.T) {
	var asked []netip.AddrPort
	g := newTestGateway(t, func(c *Config) {
		onHost(c)
		c.Bind = func(network string, at netip.AddrPort) (int, error) {
			asked = append(asked, at)
			return bound.Open(network, netip.AddrPortFrom(at.Addr(), 0)) // as this test may
		}
	})
	put := func(port uint16) (err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for ever: the thread ends with the goroutine
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err = unix.Capset(&header, &none[0]); err == nil {
				err = g.PutHostPort(byPod("unprivileged", hostA, port, wire.ProtoTCP, pod4))
			}
		}()
		<-done
		return err
	}
	if err := put(freePort(t)); err != nil || len(asked) != 0 {
		t.Errorf("asked for %v, error %v; want nobody asked for a port that is anybody's", asked, err)
	}
	const low = 443
	if err := put(low); err != nil || !slices.Equal(asked, []netip.AddrPort{netip.AddrPortFrom(hostA, low)}) {
		t.Errorf("asked for %v, error %v; want port %d", asked, err, low)
	}
	for _, s := range g.Listeners() {
		if s.Err != nil {
			t.Errorf("%v: %v", s.Addr, s.Err)
		}
	}
}
