package gateway

import (
	"bytes"
	"io"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// talk is a pod's connection with the host through which messages pass, carried by
// the worker of a queue in its own turns. All that it does not wait for; once one side
// sends much, or does not take at once what the other sent, the connection is a stream
// for good and goroutines carry it (splice).
//
// Its worker alone touches it from begin on, but for ask. The descriptor is the
// worker's until the connection ends or is a stream.
type talk struct {
	splice
	q     *Queue
	fd    int // the host's side, non-blocking and marked
	slot  int32
	entry waiter.Entry
	asked atomic.Bool // it is in q.asked
	over  bool        // it has ended, or is a stream
	ended func()      // called once, when the connection has

	bulk  int    // bytes that moved in large pieces
	since uint32 // from this tick on
}

const (
	noSlot = -1

	// A connection that moves so much within one tick, in pieces of that size, is a stream.
	bulkBytes  = 256 << 10
	largeBytes = 4 << 10
)

// begin gives the connection to its worker.
func (t *talk) begin() {
	t.slot = noSlot
	t.asked.Store(true) // nobody asks for it before the worker has it
	t.used.Store(t.g.tick.Load())
	t.entry.Init(t, waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	t.pod.wq.EventRegister(&t.entry)
	if t.allowed = newAllowance(t.g.memory, t.pod); t.allowed == nil {
		t.g.counters.memoryCapped.Add(1)
		t.end(true)
		return
	}
	if !t.g.begin(&t.splice) || !t.q.adopt(t) {
		t.end(true)
	}
}

// NotifyEvent is called by the netstack when the pod has sent something, or the
// connection has ended; locks of the connection may be held.
func (t *talk) NotifyEvent(waiter.EventMask) { t.q.ask(t) }

// fromHost passes on what the host sends, of which the worker was told once.
func (t *talk) fromHost(events uint32) {
	b := t.q.buf[:]
	for !t.hostEnded {
		n, errno := bareRead(t.fd, b)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			t.end(true)
			return
		case n == 0:
			t.hostEnded = true
			t.pod.closeWrite()
			t.half()
			return
		}
		t.moved(n, nil)
		switch sent, err := t.pod.tryWrite(b[:n]); {
		case err == errWouldBlock || err == nil && (n == len(b) || t.much(n)):
			t.becomeStream(b[sent:n], nil)
			return
		case err != nil:
			t.end(true)
			return
		}
		if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return // that was all: of what comes later the worker is told again
		}
	}
}

// fromPod passes on what the pod has sent, and sees whether the connection has ended.
func (t *talk) fromPod() {
	if t.slot == noSlot {
		if err := t.q.add(t); err != nil {
			t.g.cfg.Log.Warn("a pod's connection can't be waited for", "err", err)
			t.end(true)
			return
		}
	}
	b := t.q.buf[:]
	for total := 0; !t.podEnded; {
		n, err := t.pod.read(b)
		switch err {
		case nil:
		case errWouldBlock:
			return
		case io.EOF:
			t.podEnded = true
			if !t.hostEnded { // else closing says so
				_ = unix.Shutdown(t.fd, unix.SHUT_WR) // fails where the host has reset: then it is read
			}
			t.half()
			return
		default:
			t.end(true)
			return
		}
		t.moved(n, nil)
		sent, errno := bareWrite(t.fd, b[:n])
		if errno != 0 && errno != unix.EAGAIN {
			t.end(true)
			return
		}
		if total += n; sent < n || total >= messageBytes || t.much(n) {
			t.becomeStream(nil, b[sent:n])
			return
		}
	}
	if tcp.EndpointState(t.pod.ep.State()) == tcp.StateError {
		t.end(true)
	}
}

// much notes that n bytes moved at once, and reports whether that is more than messages.
func (t *talk) much(n int) bool {
	if n < largeBytes {
		return false
	}
	if tick := t.g.tick.Load(); tick != t.since {
		t.since, t.bulk = tick, 0
	}
	t.bulk += n
	return t.bulk >= bulkBytes
}

// half notes that one direction has ended.
func (t *talk) half() {
	t.halves.Add(1)
	if t.hostEnded && t.podEnded {
		t.end(false)
	}
}

// end ends the connection, one that broke with a reset to both sides.
func (t *talk) end(broken bool) {
	t.leave()
	t.g.connections.remove(&t.splice)
	if broken {
		t.pod.abort()
	} else {
		t.pod.close()
		setLinger(t.fd, -1) // see mark and finish
	}
	unix.Close(t.fd)
	if t.allowed != nil {
		t.allowed.close()
	}
	t.ended()
}

// leave takes the connection from the worker.
func (t *talk) leave() {
	t.over = true
	t.q.remove(t)
	t.pod.wq.EventUnregister(&t.entry)
}

// becomeStream gives the connection to goroutines, with what was read for one side and not
// taken.
func (t *talk) becomeStream(toPod, toHost []byte) {
	t.leave()
	toPod, toHost = bytes.Clone(toPod), bytes.Clone(toHost)
	go func() {
		defer t.ended()
		t.stream(t.fd, toPod, toHost)
	}()
}

// bareRead and bareWrite are those of tap.Queue: without the Go scheduler, as they never
// wait.
func bareRead(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func bareWrite(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
