package bound

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAStockGoesFurtherThanTheSystemLimit opens all there are of a stock and one more.
func TestAStockGoesFurtherThanTheSystemLimit(t *testing.T) {
	const each, wantBytes = 2, 64 << 20 // more than net.core.rmem_max is anywhere
	s := NewStock(each, wantBytes)
	t.Cleanup(func() { s.Close() })
	if len(s.v4) == 0 {
		t.Skip("needs CAP_NET_ADMIN, to make sockets with larger buffers than the system's limit (run as root)")
	}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), 0)
		for i := range each + 1 {
			fd, err := s.Open(at)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
			if err != nil {
				t.Fatal(err)
			}
			// The kernel doubles what is asked for (socket(7)).
			if large := have >= 2*wantBytes; large != (i < each) {
				t.Errorf("%s, socket %d of %d: its buffer has %d bytes", addr, i+1, each, have)
			}
			if i == 0 {
				taken := netip.AddrPortFrom(at.Addr(), port(t, fd))
				if _, err := s.Open(taken); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("%v, which is taken: %v", taken, err)
				}
			}
		}
	}
	if _, err := s.Open(netip.MustParseAddrPort("0.0.0.0:1")); err == nil {
		t.Error("the wildcard was bound")
	}
}

func port(t *testing.T, fd int) uint16 {
	t.Helper()
	switch sa, err := unix.Getsockname(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	default:
		t.Fatalf("%T, %v", sa, err)
	}
	return 0
}
