package fdpass

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// Listener is a listening unix socket and the file by which others find it. When
// somebody takes the file away, Restore puts another in its place: Accept goes on
// there, and connections that were made before are not touched.
//
// Its methods may be called from any goroutine.
type Listener struct {
	network, path string

	mu     sync.Mutex
	socket *net.UnixListener // guarded by mu, as is all below
	file   fs.FileInfo       // what socket is bound to
	closed bool
}

var _ net.Listener = (*Listener)(nil)

// Bind listens on a unix socket at path with mode 0600; network is "unix" or
// "unixpacket". A socket file that nobody listens on is replaced, since a killed
// daemon leaves one; where somebody does, the error is ErrInUse; a file that is no
// socket is left alone.
func Bind(network, path string) (*Listener, error) {
	l := &Listener{network: network, path: path}
	var err error
	if l.socket, l.file, err = l.bind(); err != nil {
		return nil, fmt.Errorf("fdpass: listen on %s: %w", path, err)
	}
	return l, nil
}

func (l *Listener) bind() (*net.UnixListener, fs.FileInfo, error) {
	socket, err := bind(l.network, l.path)
	if err != nil {
		return nil, nil, err
	}
	file, err := os.Lstat(l.path)
	if err != nil {
		socket.Close()
		return nil, nil, err
	}
	return socket, file, nil
}

// InPlace reports why others don't find this socket by its path; nil: they do.
func (l *Listener) InPlace() error {
	file, err := os.Lstat(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !os.SameFile(file, l.file) {
		return fmt.Errorf("%s is another file", l.path)
	}
	return nil
}

// Restore binds the path again, in a directory made anew, with mode 0700, if that has
// gone as well. It is refused where somebody else listens there by
// now (ErrInUse), or a file is in the way; the listener is then as before.
func (l *Listener) Restore() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	if err := os.Mkdir(filepath.Dir(l.path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("fdpass: %w", err)
	}
	socket, file, err := l.bind()
	if err != nil {
		return fmt.Errorf("fdpass: listen on %s: %w", l.path, err)
	}
	old := l.socket
	l.socket, l.file = socket, file
	old.SetUnlinkOnClose(false) // the path is the new one's
	return old.Close()
}

func (l *Listener) now() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.socket
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) { return l.AcceptUnix() }

// AcceptUnix waits for a connection, at whatever file the listener has meanwhile.
func (l *Listener) AcceptUnix() (*net.UnixConn, error) {
	for {
		socket := l.now()
		conn, err := socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) && l.now() != socket {
			continue
		}
		return conn, err
	}
}

// Close stops listening and removes the file, unless it has become another's.
func (l *Listener) Close() error {
	inPlace := l.InPlace() == nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.socket.SetUnlinkOnClose(inPlace)
	return l.socket.Close()
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.now().Addr() }
