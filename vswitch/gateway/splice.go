package gateway

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/waiter"
)

// spliceBytes is one read or write between a host socket and the netstack. With
// 64 KiB super-frames on both sides a system call moves four; beyond the size of
// a core's second cache more would not help.
const spliceBytes = 256 << 10

var splicePool = sync.Pool{New: func() any { return new([spliceBytes]byte) }}

// resetGrace is how long the host may take to read what a pod sent before its reset.
const resetGrace = time.Second

// splice joins a host connection and a pod's. Each direction ends by itself, as
// TCP's do; a reset on either side resets the other. A buffer is held only while
// bytes are in it, so that thousands of idle connections cost no buffers, and those
// that stall keep within an allowance.
//
// One that begins as a talk has no host until goroutines carry it.
type splice struct {
	pod *podConn
	g   *Gateway
	to  backend // zero: no service's

	mu   sync.Mutex
	host hostConn // guarded by mu as long as it is nil

	hostMoved, podMoved *atomic.Uint64 // bytes from each side; nil: nobody asks

	allowed *allowance
	used    atomic.Uint32 // tick of the last byte
	halves  atomic.Int32  // directions that have ended

	hostEnded, podEnded bool // a direction had ended before goroutines carried it
}

// run moves bytes until both directions have ended. It closes both connections.
func (s *splice) run() {
	s.used.Store(s.g.tick.Load())
	if s.allowed = newAllowance(s.g.memory, s.pod); s.allowed == nil {
		s.g.counters.memoryCapped.Add(1)
		s.abort()
	} else {
		defer s.allowed.close()
		s.join()
	}
	s.pod.close()
	finish(s.host)
}

func (s *splice) join() {
	if !s.g.begin(s) {
		s.abort()
		return
	}
	s.carry(nil, nil)
}

// stream is run for a connection that was a talk: fd is the host's side, toPod and toHost
// have been read from the other side already.
func (s *splice) stream(fd int, toPod, toHost []byte) {
	s.mu.Lock()
	s.host = dialed{os.NewFile(uintptr(fd), "stream")}
	s.mu.Unlock()
	defer s.allowed.close()
	s.carry(toPod, toHost)
	s.pod.close()
	finish(s.host)
}

// carry moves bytes until both directions have ended, beginning with those given.
func (s *splice) carry(toPod, toHost []byte) {
	broken := s.pod.onReset(func() { s.host.SetDeadline(time.Now().Add(resetGrace)) })
	var up sync.WaitGroup
	if !s.podEnded {
		up.Go(func() { s.end(s.toHost(toHost)) })
	}
	if !s.hostEnded {
		s.end(s.toPod(toPod))
	}
	up.Wait()
	broken.stop()
	s.g.connections.remove(s)
}

func (s *splice) end(err error) {
	if err != nil {
		s.abort()
	}
	s.halves.Add(1)
}

// abort resets both sides, of a talk the pod's, by which its worker learns of it.
func (s *splice) abort() {
	s.pod.abort()
	s.mu.Lock()
	host := s.host
	s.mu.Unlock()
	if host != nil {
		reset(host)
	}
}

// toPod copies what the host side sends, after first.
func (s *splice) toPod(first []byte) error {
	raw, err := s.host.SyscallConn()
	if err != nil {
		return err
	}
	w := s.pod.watch(waiter.WritableEvents)
	defer w.stop()
	if err := s.pod.write(first, w); err != nil {
		return err
	}
	for {
		var buf *[spliceBytes]byte
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			buf = splicePool.Get().(*[spliceBytes]byte)
			n, rerr = readFD(int(fd), buf[:s.allowed.toPodChunk()])
			if rerr == unix.EAGAIN {
				splicePool.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if err = errors.Join(err, rerr); err == nil && n > 0 {
			s.moved(n, s.hostMoved)
			err = s.give(buf, buf[:n], w)
		} else if buf != nil {
			splicePool.Put(buf)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			s.pod.closeWrite()
			return nil
		}
	}
}

// give sends b, which lies in buf, to the pod, and returns buf.
func (s *splice) give(buf *[spliceBytes]byte, b []byte, w *eventWait) error {
	n, err := s.pod.tryWrite(b)
	if err != errWouldBlock {
		splicePool.Put(buf)
		return err
	}
	left := s.allowed.keep(buf, b[n:])
	defer left.release()
	began := s.g.tick.Load()
	if err = s.pod.write(left.rest, w); err == nil && s.g.tick.Load()-began <= 1 {
		s.allowed.growSend() // the pod reads: only the buffer was short
	}
	return err
}

func readFD(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// toHost copies what the pod sends, after first.
func (s *splice) toHost(first []byte) error {
	raw, err := s.host.SyscallConn()
	if err != nil {
		return err
	}
	if _, err := writeHost(raw, first, true); err != nil {
		return err
	}
	w := s.pod.watch(waiter.ReadableEvents)
	defer w.stop()
	for {
		buf := splicePool.Get().(*[spliceBytes]byte)
		n, err := s.pod.read(buf[:s.allowed.toHostChunk()])
		if n > 0 {
			s.moved(n, s.podMoved)
			err = s.take(buf, buf[:n], raw)
		} else {
			splicePool.Put(buf)
		}
		switch err {
		case nil:
		case errWouldBlock:
			<-w.ch
		case io.EOF:
			return s.host.CloseWrite()
		default:
			return err
		}
	}
}

// take sends b, which lies in buf, to the host, and returns buf.
func (s *splice) take(buf *[spliceBytes]byte, b []byte, raw syscall.RawConn) error {
	n := len(b)
	b, err := writeHost(raw, b, false)
	if len(b) == 0 || err != nil {
		splicePool.Put(buf)
		s.allowed.received(n, s.g.tick.Load())
		return err
	}
	left := s.allowed.keep(buf, b)
	defer left.release()
	_, err = writeHost(raw, left.rest, true)
	return err
}

// writeHost sends b to a socket and returns what is left, nothing if it may wait.
func writeHost(raw syscall.RawConn, b []byte, wait bool) ([]byte, error) {
	var err error
	werr := raw.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			if n, err = unix.Write(int(fd), b); n > 0 {
				b = b[n:]
			}
			switch err {
			case nil, unix.EINTR:
				err = nil
			case unix.EAGAIN:
				err = nil
				return !wait
			default:
				return true
			}
		}
		return true
	})
	return b, errors.Join(werr, err)
}

func (s *splice) moved(n int, by *atomic.Uint64) {
	s.used.Store(s.g.tick.Load())
	s.g.counters.bytes.Add(uint64(n))
	if by != nil {
		by.Add(uint64(n))
	}
}

// idle reports whether the connection has been silent too long.
func (s *splice) idle(tick, limit, halfClosedLimit uint32) bool {
	if s.halves.Load() > 0 {
		limit = halfClosedLimit
	}
	return tick-s.used.Load() >= limit
}

func (s *splice) backend() backend { return s.to }
