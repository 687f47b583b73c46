// Package queuetest is an in-memory vswitch.Queue for tests: frames go in by
// Inject and what the switch sends comes out by Next. It touches no device and
// may be used by any test.
package queuetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Queue satisfies vswitch.Queue. Its methods may be called from any goroutine.
type Queue struct {
	fd  int
	out chan *frame.Frame

	mu     sync.Mutex
	in     []*frame.Frame // guarded by mu
	refuse drop.Reason    // guarded by mu: why Transmit sends nothing
	closed bool           // guarded by mu
}

// New makes a queue that holds up to depth sent frames; more are dropped as
// drop.EgressFull, as a device would.
func New(depth int) (*Queue, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("queuetest: eventfd: %w", err)
	}
	return &Queue{fd: fd, out: make(chan *frame.Frame, depth)}, nil
}

// Inject queues an owned frame for the switch to receive.
func (q *Queue) Inject(f *frame.Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.in = append(q.in, f)
	if !q.closed {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(q.fd, one[:])
	}
}

// Refuse makes Transmit drop everything for the reason r; drop.None ends it.
func (q *Queue) Refuse(r drop.Reason) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refuse = r
}

// Next waits for the next frame that the switch sent and hands it over, owned.
func (q *Queue) Next(ctx context.Context) (*frame.Frame, error) {
	select {
	case f := <-q.out:
		return f, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Sent takes all frames sent so far, without waiting.
func (q *Queue) Sent() []*frame.Frame {
	var fs []*frame.Frame
	for {
		select {
		case f := <-q.out:
			fs = append(fs, f)
		default:
			return fs
		}
	}
}

// PollFD is an eventfd that is readable while frames wait.
func (q *Queue) PollFD() int { return q.fd }

// ErrClosed is what Receive answers after Close.
var ErrClosed = errors.New("queuetest: closed")

// Receive copies injected frames into b.
func (q *Queue) Receive(b *frame.Batch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	for len(q.in) > 0 && !b.Full() {
		src, dst := q.in[0], b.Next()
		q.in = q.in[1:]
		dst.Set(src.Bytes())
		dst.VNet, dst.Peer, dst.Ingress, dst.Drop = src.VNet, src.Peer, src.Ingress, src.Drop
		b.Keep()
	}
	if len(q.in) == 0 {
		var count [8]byte
		_, _ = unix.Read(q.fd, count[:])
	}
	return nil
}

// Transmit keeps copies of fs for Next.
func (q *Queue) Transmit(fs []*frame.Frame) {
	q.mu.Lock()
	refuse := q.refuse
	q.mu.Unlock()
	for _, f := range fs {
		if refuse != drop.None {
			f.Drop = refuse
			continue
		}
		select {
		case q.out <- f.Clone():
		default:
			f.Drop = drop.EgressFull
		}
	}
}

// Close releases the eventfd.
func (q *Queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errors.New("queuetest: closed twice")
	}
	q.closed = true
	return unix.Close(q.fd)
}
