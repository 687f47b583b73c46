//go:build linux

package vxlan

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
)

// Queue is one worker's part of the tunnel: a socket for each underlay family.
// Its methods are the worker's alone, Close excepted.
type Queue struct {
	t     *Tunnel
	links []*link
	turn  int // link that Receive begins with
	epfd  int

	// A train may hold more packets than the batch has frames left. What remains
	// waits in the link, where epoll can't see it: the event makes PollFD readable.
	event    int
	signaled bool

	coalescer offload.Coalescer
	segments  offload.Segments
	h         wire.Headers // scratch

	lostAnswer drop.Reason // why the last answer to a probe was not sent, if it was not

	once sync.Once
	err  error // of Close
}

// link is one socket and where reading it stands.
type link struct {
	conn     *udp.Conn
	v6       bool
	maxBytes int // longest inner frame, Ethernet header included, that fits the underlay's MTU

	next, n int  // messages of the last Receive still to be read
	off     int  // bytes of message next already read
	drained bool // the socket had no more
}

// newQueue makes queue i of sockets that listen opened, or where there are
// fewer sockets than queues, of send-only handles on the others'.
func (t *Tunnel) newQueue(us []underlay, conns [][]*udp.Conn, i int) (*Queue, error) {
	q := &Queue{t: t, epfd: -1, event: -1}
	q.coalescer.USO, q.coalescer.ECN = t.cfg.USO, t.cfg.TSOECN
	for k, u := range us {
		conn := conns[i%len(conns)][k]
		if i >= len(conns) {
			var err error
			if conn, err = conn.Sender(nil); err != nil {
				return nil, errors.Join(err, q.Close())
			}
		}
		q.links = append(q.links, &link{
			conn: conn, v6: u.v6,
			maxBytes: u.mtuBytes - Overhead(u.addr) + wire.EthernetBytes,
		})
	}
	if err := q.openPoll(i < len(conns)); err != nil {
		return nil, errors.Join(fmt.Errorf("vxlan: queue %d: %w", i, err), q.Close())
	}
	return q, nil
}

// openPoll makes the descriptor that PollFD gives: an epoll of the sockets and the event.
func (q *Queue) openPoll(receives bool) error {
	var err error
	if q.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if q.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	fds := []int{q.event}
	if receives {
		for _, l := range q.links {
			fds = append(fds, l.conn.FD())
		}
	}
	for _, fd := range fds {
		if err := unix.EpollCtl(q.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}

// PollFD is readable, level triggered, while Receive has something to give.
func (q *Queue) PollFD() int { return q.epfd }

// signal makes the event say whether packets wait in a link.
func (q *Queue) signal() {
	waiting := false
	for _, l := range q.links {
		waiting = waiting || l.next < l.n
	}
	if waiting == q.signaled {
		return
	}
	var word [8]byte
	if waiting {
		word[0], word[7] = 1, 1 // not zero in either byte order
		_, _ = rawIO(unix.SYS_WRITE, q.event, &word)
	} else {
		_, _ = rawIO(unix.SYS_READ, q.event, &word)
	}
	q.signaled = waiting
}

// Close closes the queue's descriptors; a second call does nothing. The worker must have let go.
func (q *Queue) Close() error {
	q.once.Do(func() {
		var errs []error
		for _, l := range q.links {
			errs = append(errs, l.conn.Close())
		}
		for _, fd := range []int{q.epfd, q.event} {
			if fd >= 0 {
				errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
			}
		}
		q.err = errors.Join(errs...)
	})
	return q.err
}
