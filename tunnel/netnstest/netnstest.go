//go:build linux

// Package netnstest gives the tunnel's tests network namespaces. They are
// anonymous: they go with the test's descriptors, however the test ends.
package netnstest

import (
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// RequireRoot skips the test where namespaces can't be made.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces and the devices in them")
	}
}

// New makes a namespace with lo up.
func New(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	Do(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// Do runs f on a thread that is in the namespace and fails the test with f's
// error. A thread that can't be brought back is not reused.
func Do(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Addr gives a link an address, usable at once.
func Addr(link netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	a.Flags |= unix.IFA_F_NODAD
	return netlink.AddrAdd(link, a)
}

// Route adds an onlink route with a permanent neighbour for its gateway.
func Route(link netlink.Link, dst, via string, mac [6]byte) error {
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	gw := net.ParseIP(via)
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: n, Gw: gw, Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteAdd(r); err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: r.LinkIndex, IP: gw, HardwareAddr: mac[:], State: netlink.NUD_PERMANENT,
	})
}

// Veth makes a pair of devices of one name in two namespaces, up, with an address each.
func Veth(t testing.TB, name string, mtuBytes int, here netns.NsHandle, hereCIDR string, there netns.NsHandle, thereCIDR string) {
	t.Helper()
	up := func(cidr string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if cidr != "" {
			if err := Addr(link, cidr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	Do(t, here, func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtuBytes}, PeerName: name, PeerNamespace: netlink.NsFd(there),
		})
		if err != nil {
			return err
		}
		return up(hereCIDR)
	})
	Do(t, there, func() error { return up(thereCIDR) })
}
