package bound

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Stock is UDP sockets with larger buffers than the system lets every process ask for
// (net.core.rmem_max). Making those takes CAP_NET_ADMIN, binding them does not: they
// are made while the process has it, and bound when somebody wants one. A zero Stock is
// empty. Its methods may be called from any goroutine.
type Stock struct {
	bufferBytes int

	mu     sync.Mutex
	v4, v6 []int // guarded by mu
}

// NewStock makes n sockets of each family with buffers of so many bytes each way, or
// none where this process may not.
func NewStock(n, bufferBytes int) *Stock {
	s := &Stock{bufferBytes: bufferBytes}
	for _, f := range []struct {
		family int
		fds    *[]int
	}{{unix.AF_INET, &s.v4}, {unix.AF_INET6, &s.v6}} {
		for range n {
			fd, err := unix.Socket(f.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				break // a family that this host has not
			}
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes) != nil ||
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferBytes) != nil {
				unix.Close(fd)
				break
			}
			*f.fds = append(*f.fds, fd)
		}
	}
	return s
}

// Open binds one to an address, as the function Open does. When there is none left it
// makes one with buffers as large as the system lets it.
func (s *Stock) Open(at netip.AddrPort) (fd int, err error) {
	ip := at.Addr().Unmap()
	shelf := &s.v6
	if ip.Is4() {
		shelf = &s.v4
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(*shelf) == 0 {
		if fd, err = Open("udp", at); err == nil && s.bufferBytes > 0 {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, s.bufferBytes)
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, s.bufferBytes)
		}
		return fd, err
	}
	sa, err := sockaddr(at)
	if err != nil {
		return -1, err
	}
	last := len(*shelf) - 1
	fd = (*shelf)[last]
	if err := setUp(fd, unix.SOCK_DGRAM, ip, sa); err != nil { // not bound: another may have it
		return -1, fmt.Errorf("bind %v: %w", at, err)
	}
	*shelf = (*shelf)[:last]
	return fd, nil
}

// Close closes what is left.
func (s *Stock) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, fd := range append(s.v4, s.v6...) {
		errs = append(errs, unix.Close(fd))
	}
	s.v4, s.v6 = nil, nil
	return errors.Join(errs...)
}
