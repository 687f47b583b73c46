package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Connections as a small request makes them: one byte there, one byte back, and
// the server closes first, so that the client's ports are free again at once.

// connectionTimeout bounds each step of a connection.
const connectionTimeout = 3 * time.Second

// acceptors is how many connections a server handles at once.
const acceptors = 8

// Connections counts connections made and used.
type Connections struct {
	Count     int           `json:"count"`
	Elapsed   time.Duration `json:"elapsedNs"`
	PerSecond float64       `json:"perSecond"`
}

// Connect makes connections for duration, clients of them at a time. The
// report's RTT is from connecting to the server's close. A connection that
// fails is an error.
func (c *Client) Connect(ctx context.Context, clients int, duration time.Duration) (*Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	samples := make([][]time.Duration, clients)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for time.Since(begin) < duration && ctx.Err() == nil {
				start := time.Now()
				if err := c.connectOnce(); err != nil {
					cancel(fmt.Errorf("connection %d of client %d: %w", len(samples[i])+1, i+1, err))
					return
				}
				samples[i] = append(samples[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(begin)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var all []time.Duration
	for _, s := range samples {
		all = append(all, s...)
	}
	rtt, err := newRTT(all, 0)
	return &Report{RTT: rtt, Connections: &Connections{Count: len(all), Elapsed: elapsed, PerSecond: float64(len(all)) / elapsed.Seconds()}}, err
}

func (c *Client) connectOnce() error {
	fd, err := blockingSocket(unix.SOCK_STREAM, c.To, func(fd int, a unix.Sockaddr) error {
		err := errors.Join(setTimeout(fd, unix.SO_SNDTIMEO, int64(connectionTimeout)), setTimeout(fd, unix.SO_RCVTIMEO, int64(connectionTimeout)))
		if err != nil {
			return err
		}
		if err := retry(func() error { return unix.Connect(fd, a) }); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var b [1]byte
	if _, err := unix.Write(fd, b[:]); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for answered := false; ; answered = true {
		n := 0
		err := retry(func() (err error) { n, err = unix.Read(fd, b[:]); return err })
		switch {
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0 && answered:
			return nil
		case n == 0:
			return errors.New("closed without an answer")
		}
	}
}

// retry does again what a signal interrupted; Go's own preemption sends some.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Acceptor is the other end of Connect.
type Acceptor struct{ fd int }

// ListenAcceptor opens an acceptor.
func ListenAcceptor(at netip.AddrPort) (*Acceptor, error) {
	fd, err := blockingSocket(unix.SOCK_STREAM, at, func(fd int, a unix.Sockaddr) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			setTimeout(fd, unix.SO_RCVTIMEO, int64(sinkPoll)), unix.Bind(fd, a), unix.Listen(fd, 4096))
	})
	if err != nil {
		return nil, fmt.Errorf("acceptor on %s: %w", at, err)
	}
	return &Acceptor{fd}, nil
}

// Serve answers until ctx ends. A connection that fails is the client's to notice.
func (a *Acceptor) Serve(ctx context.Context) error {
	defer unix.Close(a.fd)
	errs := make(chan error, acceptors)
	for range acceptors {
		go func() { errs <- a.serve(ctx) }()
	}
	var err error
	for range acceptors {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (a *Acceptor) serve(ctx context.Context) error {
	var b [1]byte
	for ctx.Err() == nil {
		fd, _, err := unix.Accept4(a.fd, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		setTimeout(fd, unix.SO_RCVTIMEO, int64(connectionTimeout))
		if n := 0; retry(func() (err error) { n, err = unix.Read(fd, b[:]); return err }) == nil && n == 1 {
			unix.Write(fd, b[:])
		}
		unix.Close(fd)
	}
	return nil
}
