package cni

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vswitch/internal/netif"
)

const loopback = "lo"

// raiseLoopback brings lo up and makes sure that both its addresses work:
// containers of a pod talk to each other there.
func raiseLoopback() error {
	six := netif.HasIPv6(loopback)
	if six { // before it is up: the kernel gives it ::1 on the way
		if err := netif.SetSysctl(netif.IPv6Sysctl(loopback, "disable_ipv6"), "0"); err != nil {
			return err
		}
	}
	if err := netif.SetUp(loopback); err != nil {
		return err
	}
	return checkLoopback(six)
}

// checkLoopback tries the addresses the way a program would.
func checkLoopback(six bool) error {
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if six {
		addrs = append(addrs, netip.IPv6Loopback())
	}
	for _, a := range addrs {
		if err := bindsTo(a); err != nil {
			return fmt.Errorf("%s doesn't work: %w", a, err)
		}
	}
	return nil
}

// bindsTo reports whether a UDP socket can be bound to an address and send to it.
// It is made by system call: the runtime's sockets may come to another thread.
func bindsTo(a netip.Addr) error {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if a.Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, to); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if err := unix.Sendto(fd, []byte{1}, 0, self); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	// Loopback delivers within the call.
	n, _, err := unix.Recvfrom(fd, make([]byte, 2), unix.MSG_DONTWAIT)
	if err == nil && n != 1 {
		err = errors.New("wrong length")
	}
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}
