// Package bound opens sockets at one address of the host, ready to accept or receive.
//
// It gives bare descriptors, which can be kept, passed on and made into connections
// of package net later. It never binds the wildcard, which would take addresses that
// are others' to take and answer UDP from the wrong one.
package bound

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// backlog is net.core.somaxconn's default.
const backlog = 4096

// Open opens a socket at an address: "tcp", listening, or "udp". It is non-blocking
// and closed on exec. errors.Is tells unix.EADDRINUSE, a port that is taken, and
// unix.EACCES, one that needs CAP_NET_BIND_SERVICE.
func Open(network string, at netip.AddrPort) (fd int, err error) {
	sa, err := sockaddr(at)
	if err != nil {
		return -1, err
	}
	ip := at.Addr().Unmap()
	kind := unix.SOCK_STREAM
	switch network {
	case "tcp":
	case "udp":
		kind = unix.SOCK_DGRAM
	default:
		return -1, fmt.Errorf("bind %v: network %q, want tcp or udp", at, network)
	}
	family := unix.AF_INET6
	if ip.Is4() {
		family = unix.AF_INET
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, fmt.Errorf("bind %v: socket: %w", at, err)
	}
	if err := setUp(fd, kind, ip, sa); err != nil {
		return -1, errors.Join(fmt.Errorf("bind %v: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

// sockaddr refuses what is no address of one host.
func sockaddr(at netip.AddrPort) (unix.Sockaddr, error) {
	ip := at.Addr().Unmap()
	switch {
	case !ip.IsValid() || ip.IsUnspecified():
		return nil, fmt.Errorf("bind %v: want an address of this host", at)
	case ip.Is4():
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: ip.As4()}, nil
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: ip.As16()}, nil
}

func setUp(fd, kind int, ip netip.Addr, sa unix.Sockaddr) error {
	if ip.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if kind == unix.SOCK_DGRAM {
		return unix.Bind(fd, sa)
	}
	// Connections of an earlier listener may be in TIME-WAIT at the port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	return unix.Listen(fd, backlog)
}
