package tap

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Queue moves frames through one descriptor of a TAP. One worker at a time calls
// Receive and Transmit; Close comes after it let go.
//
// Reads and writes are bare non-blocking system calls without the Go scheduler:
// they take microseconds and never wait, so that handing over the processor
// would cost more than the call. The descriptor's O_NONBLOCK is shared with its
// duplicates: a process that clears it on one stalls the worker on all.
type Queue struct {
	fd       int
	headroom int // frame.VNetHeaderBytes, or zero for a plain TAP
	features Features
	name     string
	software software
}

// NewQueue makes a queue of fd, which another process may have opened, in another
// network or user namespace. f is what Create or Attach found there; the header
// and its offloads are set again, so nothing depends on who held the descriptor
// before. The queue owns fd; on error the caller still does.
func NewQueue(fd int, f Features) (*Queue, error) {
	q, err := prepare(fd, f)
	if err != nil {
		return nil, fmt.Errorf("tap: open queue on descriptor %d: %w", fd, err)
	}
	return q, nil
}

func prepare(fd int, f Features) (*Queue, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	name, flags, err := queryDevice(fd)
	if err != nil {
		return nil, err
	}
	if hasHeader := flags&unix.IFF_VNET_HDR != 0; hasHeader != f.Has(VNet) {
		return nil, fmt.Errorf("%q: features say %q but the device's flags are %#x", name, f, flags)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("%q: set non-blocking: %w", name, err)
	}
	if f.Has(VNet) {
		if err := setHeader(fd); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, f.offloadBits()); err != nil {
			return nil, fmt.Errorf("%q: set offload %q: %w", name, f, err)
		}
	}
	return newQueue(fd, f, name), nil
}

func newQueue(fd int, f Features, name string) *Queue {
	q := &Queue{fd: fd, features: f, name: name}
	if f.Has(VNet) {
		q.headroom = frame.VNetHeaderBytes
	}
	return q
}

// Name is the device's name in its own namespace.
func (q *Queue) Name() string { return q.name }

// Features is what the queue was opened with.
func (q *Queue) Features() Features { return q.features }

// PollFD is the descriptor to wait on for readability.
func (q *Queue) PollFD() int { return q.fd }

// Close closes the descriptor. It is idempotent.
func (q *Queue) Close() error {
	if q.fd < 0 {
		return nil
	}
	fd := q.fd
	q.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("tap: close %q: %w", q.name, err)
	}
	return nil
}

// Receive appends frames to b until the device has no more or b is full. A frame
// that can't be trusted is kept with its Drop set. An error means that the queue
// is dead: the device was deleted, or the descriptor was never good.
func (q *Queue) Receive(b *frame.Batch) error {
	for !b.Full() {
		f := b.Next()
		// One byte more than the longest frame, to tell it from one cut off.
		buf := f.SpaceWithHeadroom(q.headroom)[:q.headroom+frame.MaxBytes+1]
		n, errno := q.read(buf)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return nil
		default:
			return fmt.Errorf("tap: receive from %q: %w", q.name, errno)
		}
		if n == 0 { // the other end of a socket is gone; a TAP never says this
			return fmt.Errorf("tap: receive from %q: %w", q.name, io.EOF)
		}
		q.accept(f, buf, n)
		b.Keep()
	}
	return nil
}

// accept turns the n bytes read into buf into a frame.
func (q *Queue) accept(f *frame.Frame, buf []byte, n int) {
	length := n - q.headroom
	if length < frame.EthernetBytes || length > frame.MaxBytes {
		f.SetLen(min(max(length, 0), frame.MaxBytes))
		f.Drop = drop.Truncated
		return
	}
	f.SetLen(length)
	if q.headroom == 0 {
		return
	}
	f.VNet.Decode(buf)
	f.Drop = sanitize(&f.VNet, f.Bytes())
}

// Transmit sends fs in order. A frame that was not sent has its Drop set.
func (q *Queue) Transmit(fs []*frame.Frame) {
	for _, f := range fs {
		if q.needsSoftware(&f.VNet) {
			f.Drop = q.transmitSoftware(f)
			continue
		}
		b := f.WithHeadroom(q.headroom)
		if q.headroom != 0 {
			f.VNet.Encode(b)
		}
		f.Drop = q.write(b)
	}
}

// write sends one frame, header included.
func (q *Queue) write(b []byte) drop.Reason {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(q.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return transmitReason(errno)
		}
	}
}

func transmitReason(errno unix.Errno) drop.Reason {
	switch errno {
	case 0:
		return drop.None
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return drop.EgressFull
	case unix.EINVAL, unix.EMSGSIZE:
		return drop.EgressRefused
	}
	// EIO: the link is down. EBADFD: the device is deleted.
	return drop.EgressDown
}

func (q *Queue) read(b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}
