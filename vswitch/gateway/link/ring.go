package link

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// ring holds packets, one reference each, from many goroutines for one worker,
// and an eventfd that is readable while the worker has reason to look.
//
// The eventfd costs one write when the ring stops being empty and one read when
// it is found empty, however many packets pass in between. What keeps a wake-up
// from being lost: signalled is set and the eventfd written under mu, and the
// reader, having read the eventfd, takes mu once more to see that the ring is
// still empty before it clears signalled (sleep). A packet pushed in between is
// found by that look.
//
// The write is a system call under a mutex, against our habit: it never blocks,
// it is rare, and it keeps close from pulling the descriptor from under it.
type ring struct {
	fd      int
	dropped atomic.Uint64

	mu        sync.Mutex
	pkts      []*stack.PacketBuffer // guarded by mu, as are the rest; n of them from head on, wrapping
	head, n   int
	signalled bool
	closed    bool
}

func (r *ring) open(packets int) error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	r.fd = fd
	r.pkts = make([]*stack.PacketBuffer, packets)
	return nil
}

// push takes a reference of its own; false means the packet was dropped.
func (r *ring) push(pkt *stack.PacketBuffer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.n == len(r.pkts) {
		r.dropped.Add(1)
		return false
	}
	i := r.head + r.n
	if i >= len(r.pkts) {
		i -= len(r.pkts)
	}
	r.pkts[i] = pkt.IncRef()
	r.n++
	if !r.signalled {
		r.signalled = true
		r.signal()
	}
	return true
}

// signal makes the eventfd readable.
func (r *ring) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(r.fd, one[:]) // fails only when the counter is at 2^64-2, and then it is readable
}

// pop gives the oldest packet and its reference, or nil.
func (r *ring) pop() *stack.PacketBuffer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 {
		return nil
	}
	pkt := r.pkts[r.head]
	r.pkts[r.head] = nil
	r.n--
	if r.head++; r.head == len(r.pkts) {
		r.head = 0
	}
	return pkt
}

// sleep lets the eventfd become unreadable, unless there is a packet by now.
func (r *ring) sleep() bool {
	var b [8]byte
	unix.Read(r.fd, b[:]) // EAGAIN: it was not readable
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n > 0 {
		return false
	}
	r.signalled = false
	return true
}

// rearm makes the eventfd readable again after a sleep that returned false.
func (r *ring) rearm() { r.signal() }

// close drops what waits. Later pushes are dropped.
func (r *ring) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	for ; r.n > 0; r.n-- {
		r.pkts[r.head].DecRef()
		r.pkts[r.head] = nil
		r.head = (r.head + 1) % len(r.pkts)
	}
	if err := unix.Close(r.fd); err != nil {
		return fmt.Errorf("link: close eventfd: %w", err)
	}
	return nil
}
