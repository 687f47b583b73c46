package keeper

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
)

// Bind is a socket that only the keeper may open: the dataplane gave up the
// capability for ports below 1024 (CAP_NET_BIND_SERVICE).
type Bind struct {
	Network string         `json:"network"` // "tcp" or "udp"
	Addr    netip.AddrPort `json:"addr"`
}

// serve answers a child until it hangs up.
func (c *child) serve(conn *net.UnixConn, s fdstore.Store) {
	for {
		var q request
		fds, err := read(conn, &q)
		if err != nil {
			return
		}
		r, out := c.answer(q, fds, s)
		closeAll(fds) // the store has duplicates
		err = write(conn, r, out)
		closeAll(out)
		if err != nil {
			return
		}
	}
}

// answer carries out one request; fds are borrowed, out is the caller's to close.
func (c *child) answer(q request, fds []int, s fdstore.Store) (r response, out []int) {
	var err error
	switch q.Op {
	case opBegin:
		c.waitOnce.Do(func() { close(c.waiting) })
		select {
		case <-c.begin:
		case <-c.exited:
		}
	case opReady:
		c.readyOnce.Do(func() { c.readyAt = time.Now(); close(c.ready) })
	case opPut:
		err = s.Put(q.Name, fds)
	case opGet:
		out, err = s.Get(q.Name)
	case opRemove:
		err = s.Remove(q.Name)
	case opNames:
		r.Names, r.More, err = page(s, q.Name)
	case opRenew:
		select {
		case c.renew <- struct{}{}:
		default: // asked for already
		}
	case opBind:
		var fd int
		if fd, err = open(q.Bind); err == nil {
			out = []int{fd}
		}
	default:
		err = fmt.Errorf("%q is unknown to this keeper: it is of an older version", q.Op)
	}
	if err != nil {
		r = response{Error: err.Error(), NotFound: errors.Is(err, fdstore.ErrNotFound)}
	}
	return r, out
}

// page is the names behind one, a packet full.
func page(s fdstore.Store, behind string) (names []string, more bool, err error) {
	all, err := s.Names()
	if err != nil {
		return nil, false, err
	}
	i, found := slices.BinarySearch(all, behind)
	if found {
		i++
	}
	all = all[i:]
	n := min(len(all), namesPerPage)
	return all[:n], n < len(all), nil
}

// listenBacklog is net.core.somaxconn's default.
const listenBacklog = 4096

func open(b *Bind) (fd int, err error) {
	if b == nil || !b.Addr.Addr().IsValid() || b.Addr.Addr().IsUnspecified() {
		return -1, errors.New("bind: want an address of this host")
	}
	kind := unix.SOCK_STREAM
	if b.Network == "udp" {
		kind = unix.SOCK_DGRAM
	} else if b.Network != "tcp" {
		return -1, fmt.Errorf("bind %v: network %q, want tcp or udp", b.Addr, b.Network)
	}
	ip, port := b.Addr.Addr().Unmap(), int(b.Addr.Port())
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: port, Addr: [4]byte(ip.AsSlice()[:4])})
	if ip.Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: ip.As16()}
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, fmt.Errorf("bind %v: socket: %w", b.Addr, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd, err = -1, fmt.Errorf("bind %v: %w", b.Addr, err)
		}
	}()
	if ip.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fd, err
		}
	}
	if kind == unix.SOCK_STREAM { // a port in TIME-WAIT from a listener before
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fd, err
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fd, err
	}
	if kind == unix.SOCK_STREAM {
		return fd, unix.Listen(fd, listenBacklog)
	}
	return fd, nil
}
