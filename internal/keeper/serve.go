package keeper

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/bound"
	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
)

// bind is a socket that only the keeper may open: the dataplane gave up the
// capability for ports below 1024 (CAP_NET_BIND_SERVICE), and the one for buffers
// beyond the system's limit (CAP_NET_ADMIN).
type bind struct {
	Network string         `json:"network"` // "tcp", "udp" or tunnelNetwork
	Addr    netip.AddrPort `json:"addr"`
}

// tunnelNetwork is UDP by a socket of Config.Stock.
const tunnelNetwork = "tunnel"

// resolversFile is the one file that children have opened: it is often replaced, and
// lies among files that they are kept from (resolv.conf(5)).
const resolversFile = "/etc/resolv.conf"

// serve answers a child until it hangs up.
func (c *child) serve(conn *net.UnixConn, s fdstore.Store) {
	for {
		var q request
		var r response
		var out []int
		fds, err := read(conn, &q)
		var bad *fdpass.PacketError
		switch {
		case errors.As(err, &bad): // a keeper without descriptors to spare, say: the child must not wait for ever
			r = response{Error: err.Error()}
		case err != nil:
			return
		default:
			r, out = c.answer(q, fds, s)
		}
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
	case opRefuse:
		c.reason = q.Reason
	case opRefused:
		if reason := c.refused.Load(); reason != nil {
			r.Reason = *reason
		}
	case opRenew:
		c.refused.Store(nil)
		select {
		case c.renew <- struct{}{}:
		default: // asked for already
		}
	case opBind:
		var fd int
		if fd, err = c.open(q.Bind); err == nil {
			out = []int{fd}
		}
	case opResolvers:
		var fd int
		if fd, err = unix.Open(resolversFile, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			out = []int{fd}
		}
	case opStore:
		err = c.embedded.ensure()
	default:
		err = fmt.Errorf("%q is unknown to this keeper: it is of an older version", q.Op)
	}
	if err != nil {
		r = response{Error: err.Error(), NotFound: errors.Is(err, fdstore.ErrNotFound)}
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			r.Errno = int(errno)
		}
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

func (c *child) open(b *bind) (fd int, err error) {
	switch {
	case b == nil:
		return -1, errors.New("bind: want an address")
	case b.Network == tunnelNetwork:
		return c.stock.Open(b.Addr)
	}
	return bound.Open(b.Network, b.Addr)
}
