package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// interfaceAddrs are the addresses of the host's interfaces.
func interfaceAddrs() ([]netip.Addr, error) {
	as, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range as {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, nil
}

// addrWatch tells when an address of the host comes or goes: the kernel's
// rtnetlink multicast groups, which any process may listen to (rtnetlink(7)).
type addrWatch struct {
	file *os.File
	// changed holds one token, so that a burst of changes is one.
	changed chan struct{}
	done    chan struct{}
}

func watchAddrs() (*addrWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	groups := unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}
	if err := unix.Bind(fd, &groups); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink: join address groups: %w", err)
	}
	w := &addrWatch{file: os.NewFile(uintptr(fd), "netlink"), changed: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w, nil
}

// run ends when the file is closed. What a message says does not matter: all
// addresses are looked at again. An overflow, ENOBUFS, is news like any other.
func (w *addrWatch) run() {
	defer close(w.done)
	b := make([]byte, os.Getpagesize())
	for {
		_, err := w.file.Read(b)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *addrWatch) close() {
	w.file.Close()
	<-w.done
}
