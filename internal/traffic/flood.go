package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A flood is datagrams sent as fast as one thread can, and a Sink that counts
// what arrives of them. The rate is the sink's, between the first arrival and
// the last, so it needs no word from the sender on a path that is full.

const (
	floodBatch = 64
	// usoBytes is the most one write of super-frames may hold: an IP packet less
	// its headers.
	usoBytes = 65507
	// sinkPoll is how often a sink that gets nothing looks whether to stop.
	sinkPoll = 50 * time.Millisecond
	// bufferBytes of either socket. Linux's default to send from holds some 270
	// small packets, which a path that keeps account of them to the other end (veth
	// does, a TAP does not) turns into a window, and the flood into round trips.
	bufferBytes = 4 << 20
)

// growBuffer asks for bufferBytes beyond the system's limit, which root may,
// and then for what the limit allows. Less only loses more.
func growBuffer(fd, force, option int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bufferBytes) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, bufferBytes)
	}
}

// Flood sends datagrams of SizeBytes in flows, turn by turn, for duration. With
// uso each write holds as many as fit in 64 KiB, for the kernel to cut.
func (c *Client) Flood(ctx context.Context, flows int, uso bool, duration time.Duration) (*Report, error) {
	if c.SizeBytes < 1 || flows < 1 {
		return nil, fmt.Errorf("%d flows of %d bytes: want at least one of each", flows, c.SizeBytes)
	}
	perWrite, batch := 1, floodBatch
	if uso {
		perWrite = min(usoBytes/c.SizeBytes, 64) // UDP_MAX_SEGMENTS of older kernels
		batch = 4
	}
	payload := randomBytes(c.SizeBytes * perWrite)
	var senders []*datagrams
	for range flows {
		fd, err := blockingSocket(unix.SOCK_DGRAM, c.To, func(fd int, a unix.Sockaddr) error {
			growBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
			if uso {
				if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, c.SizeBytes); err != nil {
					return fmt.Errorf("UDP_SEGMENT %d: %w", c.SizeBytes, err)
				}
			}
			return unix.Connect(fd, a)
		})
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		senders = append(senders, newDatagrams(fd, batch, len(payload), payload))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sent, begin := uint64(0), time.Now()
	for i := 0; time.Since(begin) < duration && ctx.Err() == nil; i++ {
		n, err := senders[i%flows].send()
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("send: %w", err)
		}
		sent += uint64(n * perWrite)
	}
	b := newBulk(sent*uint64(c.SizeBytes), time.Since(begin))
	b.Sent = sent
	return &Report{Bulk: b}, nil
}

// Sink counts datagrams.
type Sink struct{ in *datagrams }

// ListenSink opens a sink. With gro it takes datagrams of one flow joined, as
// the kernel or the network below joined them.
func ListenSink(at netip.AddrPort, gro bool) (*Sink, error) {
	fd, err := blockingSocket(unix.SOCK_DGRAM, at, func(fd int, a unix.Sockaddr) error {
		growBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
		var err error
		if gro {
			err = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
		}
		return errors.Join(err, setTimeout(fd, unix.SO_RCVTIMEO, int64(sinkPoll)), unix.Bind(fd, a))
	})
	if err != nil {
		return nil, fmt.Errorf("sink on %s: %w", at, err)
	}
	batch, size := floodBatch, 2<<10
	if gro {
		batch, size = 16, 64<<10
	}
	return &Sink{in: newDatagrams(fd, batch, size, nil)}, nil
}

// Serve counts until ctx ends and returns what arrived, in how long.
func (s *Sink) Serve(ctx context.Context) (*Report, error) {
	defer unix.Close(s.in.fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var bytes, writes uint64
	var first, last time.Time
	for ctx.Err() == nil {
		n, size, err := s.in.receive()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		last = time.Now()
		if first.IsZero() {
			first = last // and what came then is before the interval
			continue
		}
		bytes, writes = bytes+size, writes+uint64(n)
	}
	b := newBulk(bytes, max(last.Sub(first), 1))
	b.Received = writes
	return &Report{Bulk: b}, nil
}
