package netif

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// inside runs f in a network namespace of its own, which goes with its thread.
func inside(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- errors.Join(unix.Unshare(unix.CLONE_NEWNET), f())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The kernel carries out what stands behind a request that fails, the error is the first
// one's, and what may fail does so in silence.
func TestABatchTellsItsFirstFailure(t *testing.T) {
	inside(t, func() error {
		lo, err := indexOf("lo")
		if err != nil {
			return err
		}
		var b batch
		b.set("set MTU 1400", lo, nl.NewRtAttr(unix.IFLA_MTU, number(1400)))
		b.set("set MTU -1", lo, nl.NewRtAttr(unix.IFLA_MTU, number(-1)))
		b.set("set txqueuelen of none", 4711, nl.NewRtAttr(unix.IFLA_TXQLEN, number(5)))
		b.setUp(lo)
		if err := b.send(); !errors.Is(err, unix.EINVAL) || !strings.HasPrefix(err.Error(), "set MTU -1: ") {
			t.Errorf("got %v, want the failure of the second request", err)
		}
		b = nil
		b.set("set MTU of none", 4711, nl.NewRtAttr(unix.IFLA_MTU, number(5)))
		b[0].spare = []unix.Errno{unix.ENODEV}
		if err := b.send(); err != nil {
			t.Errorf("got %v of what may fail so", err)
		}
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if a := link.Attrs(); a.MTU != 1400 || a.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("MTU %d, flags %#x: want 1400, and up", a.MTU, a.RawFlags)
		}
		return nil
	})
}

func TestAwaitAddressesOfLoopback(t *testing.T) {
	inside(t, func() error {
		fd, err := openNetlink()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, a := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
			if local, _ := isLocal(fd, a); local {
				t.Errorf("%s is local although lo is down", a)
			}
		}
		if err := SetUp("lo"); err != nil {
			return err
		}
		return AwaitAddresses(&Spec{Addrs: []Addr{{Addr: netip.MustParseAddr("127.0.0.1")}, {Addr: netip.IPv6Loopback()}}})
	})
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, in := range [][]byte{nil, make([]byte, unix.SizeofNlMsghdr), make([]byte, 64)} {
		if _, _, err := decodeAnswer(in); err == nil {
			t.Errorf("%d bytes are taken for an answer", len(in))
		}
	}
}
