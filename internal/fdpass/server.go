package fdpass

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns bounds the exchanges in progress; further peers wait in the backlog.
	maxConns = 64
	// acceptPause spaces attempts while the process has no descriptor to spare.
	acceptPause = 100 * time.Millisecond
	// maxErrorBytes keeps an answer below MaxMessageBytes, JSON's escapes included.
	maxErrorBytes = MaxMessageBytes / 8
)

var errClosed = errors.New("fdpass: server closed")

// Handle takes one message. It owns fds from the call on, whatever it returns. Its
// error's text is the answer to the client. It is called concurrently; ctx ends
// when the server closes.
type Handle func(ctx context.Context, m Message, fds []int, peer Cred) error

// Server answers messages on one socket.
type Server struct {
	listener *Listener
	handle   Handle
	log      *slog.Logger
	slots    chan struct{} // one taken per connection

	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	conns  map[*net.UnixConn]struct{} // guarded by mu; nil when closed
	served sync.WaitGroup             // Add only under mu with conns not nil
}

// Listen binds path and returns a server that Serve sets to work.
func Listen(path string, h Handle, log *slog.Logger) (*Server, error) {
	l, err := Bind("unixpacket", path)
	if err != nil {
		return nil, err
	}
	s := &Server{
		listener: l,
		handle:   h,
		log:      log,
		slots:    make(chan struct{}, maxConns),
		conns:    make(map[*net.UnixConn]struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// InPlace reports why clients don't find the socket; nil: they do.
func (s *Server) InPlace() error { return s.listener.InPlace() }

// Restore puts the socket back in its place (Listener.Restore).
func (s *Server) Restore() error { return s.listener.Restore() }

// Serve accepts connections until ctx ends or Close is called, and returns nil
// then; its own exit closes the server. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.Close()
	stop := context.AfterFunc(ctx, s.shut)
	defer stop()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-s.slots
			if s.ctx.Err() != nil {
				return nil
			}
			if !temporary(err) {
				return fmt.Errorf("fdpass: accept: %w", err)
			}
			s.log.Warn("can't accept on the descriptor socket", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
			continue
		}
		if !s.start(conn) {
			conn.Close()
			return nil
		}
	}
}

func temporary(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// start gives conn its goroutine, unless the server is closed.
func (s *Server) start(conn *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[conn] = struct{}{}
	s.served.Go(func() {
		defer func() { <-s.slots }()
		s.exchange(conn)
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	})
	return true
}

// Close stops accepting, removes the socket file, wakes every exchange in
// progress and waits for their handlers. It is idempotent.
func (s *Server) Close() error {
	s.shut()
	s.served.Wait()
	return nil
}

// shut is Close without the waiting.
func (s *Server) shut() {
	s.cancel(errClosed)
	s.listener.Close()
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for conn := range conns {
		conn.Close()
	}
}

// exchange serves one connection: a message in, an answer out.
func (s *Server) exchange(conn *net.UnixConn) {
	conn.SetReadDeadline(time.Now().Add(Timeout))
	peer, err := CheckPeer(conn)
	if err != nil {
		// A socket closed with a message unread resets the connection before the
		// peer sees the answer. Read leaves descriptors to the kernel to drop.
		conn.Read(make([]byte, 1))
	} else {
		var m Message
		var fds []int
		if m, fds, err = receive(conn); err == nil {
			err = s.handle(s.ctx, m, fds, peer)
		}
	}
	if err != nil {
		s.log.Warn("refused descriptors", "pid", peer.PID, "uid", peer.UID, "err", err)
	}
	if err := answer(conn, err); err != nil && s.ctx.Err() == nil {
		s.log.Warn("can't answer on the descriptor socket", "pid", peer.PID, "uid", peer.UID, "err", err)
	}
}

func answer(conn *net.UnixConn, refusal error) error {
	r := reply{OK: refusal == nil}
	if refusal != nil {
		r.Error = refusal.Error()
		r.Error = strings.ToValidUTF8(r.Error[:min(len(r.Error), maxErrorBytes)], "")
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(Timeout))
	_, err = conn.Write(text)
	return err
}
