package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/link"
)

// Queue is worker i's side of the gateway: frames from and to the netstack, and the
// messages of pods' connections with sockets of the host (talk). It satisfies
// vswitch.Queue.
//
// A message and its answer must not wait for threads and goroutines to be woken one after the
// other. So the worker reads and writes the host's sockets itself, which the Go
// runtime does not know, and what it reads leaves as frames in the same turn. It does not
// wait: what a side has no room for, and what is more than messages, goes to goroutines
// (becomeStream). A turn is bounded by turnTalks and messageBytes.
//
// The switch polls one descriptor a queue. That is an epoll set: of the netstack's frames, of
// the sockets, and of an eventfd by which others ask for the worker.
type Queue struct {
	*link.Queue
	epfd  int
	askFD int // edge triggered, so that nobody has to read it

	// The worker's own.
	buf    [messageBytes]byte
	events [turnTalks]unix.EpollEvent
	talks  []*talk // by slot, which is what epoll reports; nil: free
	free   []int32 // slots
	turned []*talk // scratch of turn

	mu     sync.Mutex
	asked  []*talk // guarded by mu: to be looked after
	closed bool    // guarded by mu
}

const (
	// messageBytes is the most that is moved at once, about what one frame holds.
	messageBytes = 64 << 10
	// turnTalks bounds the connections served in one turn, from each side.
	turnTalks = 64

	slotFrames = -1
	slotAsked  = -2
)

func newQueue(frames *link.Queue) (*Queue, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	askFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	q := &Queue{Queue: frames, epfd: epfd, askFD: askFD}
	if err := errors.Join(q.poll(frames.PollFD(), unix.EPOLLIN, slotFrames), q.poll(askFD, unix.EPOLLIN|unix.EPOLLET, slotAsked)); err != nil {
		unix.Close(askFD)
		unix.Close(epfd)
		return nil, err
	}
	return q, nil
}

func (q *Queue) poll(fd int, events uint32, slot int32) error {
	if err := unix.EpollCtl(q.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: slot}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// PollFD is readable while frames or messages wait.
func (q *Queue) PollFD() int { return q.epfd }

// Receive passes messages on and appends the netstack's packets to b as frames, those
// that messages have become with them.
func (q *Queue) Receive(b *frame.Batch) error {
	q.turn()
	return q.Queue.Receive(b)
}

// turn serves the connections that have something, first from the host.
func (q *Queue) turn() {
	// Past the Go scheduler, which need not know of a call that returns at once.
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(q.epfd), uintptr(unsafe.Pointer(&q.events[0])), turnTalks, 0, 0, 0)
	if errno == 0 {
		for _, e := range q.events[:n] {
			if e.Fd < 0 {
				continue
			}
			if t := q.talks[e.Fd]; t != nil { // or it has ended in this turn
				t.fromHost(e.Events)
			}
		}
	}
	for _, t := range q.takeAsked() {
		t.asked.Store(false)
		if !t.over {
			t.fromPod()
		}
	}
}

// takeAsked gives some of those that were asked for; the others have another turn.
func (q *Queue) takeAsked() []*talk {
	clear(q.turned)
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.asked), turnTalks)
	q.turned = append(q.turned[:0], q.asked[:n]...)
	left := copy(q.asked, q.asked[n:])
	clear(q.asked[left:])
	if q.asked = q.asked[:left]; left > 0 {
		q.wake()
	}
	return q.turned
}

// ask has the worker look after t. Any goroutine may call it, also one that holds a
// lock of the netstack's.
func (q *Queue) ask(t *talk) {
	if !t.asked.Swap(true) {
		q.adopt(t)
	}
}

// adopt is ask for a connection that the worker does not have yet; false: there is no
// worker any more.
func (q *Queue) adopt(t *talk) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if q.asked = append(q.asked, t); len(q.asked) == 1 {
		q.wake()
	}
	return true
}

// wake is called under mu, so that the descriptor is there. It is a system call that
// never blocks, once for however many are asked for until the next turn.
func (q *Queue) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(q.askFD), uintptr(unsafe.Pointer(&one[0])), 8)
}

// add has the worker told when the host sends something to t.
func (q *Queue) add(t *talk) error {
	if len(q.free) == 0 {
		q.free = append(q.free, int32(len(q.talks)))
		q.talks = append(q.talks, nil)
	}
	slot := q.free[len(q.free)-1]
	if err := q.poll(t.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET, slot); err != nil {
		return err
	}
	q.free = q.free[:len(q.free)-1]
	q.talks[slot], t.slot = t, slot
	return nil
}

// remove is add's opposite, also for what was never added.
func (q *Queue) remove(t *talk) {
	if t.slot == noSlot {
		return
	}
	_ = unix.EpollCtl(q.epfd, unix.EPOLL_CTL_DEL, t.fd, nil) // it can't fail for one that is there
	q.talks[t.slot] = nil
	q.free = append(q.free, t.slot)
	t.slot = noSlot
}

// Close resets the connections that are left and releases the descriptors. It may be
// called twice, once the worker has let go.
func (q *Queue) Close() error {
	q.mu.Lock()
	closed, left := q.closed, q.asked
	q.closed, q.asked = true, nil
	q.mu.Unlock()
	if closed {
		return nil
	}
	for _, t := range append(left, q.talks...) {
		if t != nil && !t.over {
			t.end(true)
		}
	}
	return errors.Join(q.Queue.Close(), unix.Close(q.askFD), unix.Close(q.epfd))
}
