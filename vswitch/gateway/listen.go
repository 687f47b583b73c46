package gateway

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"vswitch/internal/wire"
)

// listen opens an entrance at one address of the host.
func (l *listeners) listen(at netip.AddrPort, e *entrance) (io.Closer, error) {
	if e.proto == wire.ProtoUDP {
		return l.listenUDP(at, e)
	}
	return l.listenTCP(at, e)
}

func (l *listeners) listenTCP(at netip.AddrPort, e *entrance) (io.Closer, error) {
	fd, err := l.socket("tcp", at)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	c, err := net.FileListener(f)
	f.Close() // the listener has a duplicate
	if err != nil {
		return nil, err
	}
	if e.health != nil {
		return e.health.serve(c, &l.serving), nil
	}
	l.accepting.Add(1)
	l.serving.Go(func() {
		defer l.accepting.Done()
		l.accept(c.(*net.TCPListener), e)
	})
	return c, nil
}

// acceptPause is how long accepting rests when the process has run out of
// descriptors, which are given back as connections end.
const acceptPause = 100 * time.Millisecond

func (l *listeners) accept(from *net.TCPListener, e *entrance) {
	for {
		c, err := from.AcceptTCP()
		switch {
		case err == nil:
			c.SetKeepAliveConfig(hostKeepAlive) // a client that has gone already is noticed later
			mark(c)
			l.clients.Add(1)
			l.serving.Go(func() {
				defer l.clients.Add(-1)
				l.g.serveClient(c, e)
			})
		case errors.Is(err, net.ErrClosed):
			return
		default:
			l.g.cfg.Log.Warn("host port can't accept a client", "for", e.owner, "err", err)
			select {
			case <-l.g.ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		}
	}
}

// udpListener is an entrance's socket with the sessions that use it.
type udpListener struct {
	sock  *hostSocket
	relay *relay
}

func (l *listeners) listenUDP(at netip.AddrPort, e *entrance) (io.Closer, error) {
	fd, err := l.socket("udp", at)
	if err != nil {
		return nil, err
	}
	sock, err := newHostSocket(fd, kindOf(false, at.Addr().Is6()))
	if err != nil {
		return nil, err
	}
	sock.by = e
	l.g.relay.read(sock)
	return &udpListener{sock, l.g.relay}, nil
}

// Close closes the socket first, so that no datagram can begin another session.
func (l *udpListener) Close() error {
	l.sock.close()
	l.relay.endIf(func(s *session) bool { return s.sock == l.sock })
	return nil
}

func protocolName(proto uint8) string {
	if proto == wire.ProtoUDP {
		return "udp"
	}
	return "tcp"
}
