package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectTo is connectHost to a listener on loopback.
func connectTo(t *testing.T, l net.Listener) (hostConn, error) {
	t.Helper()
	fd, err := connectHost(soon(t), l.Addr().(*net.TCPAddr).AddrPort(), time.Second)
	if err != nil {
		return nil, err
	}
	c := dialed{os.NewFile(uintptr(fd), "tcp")}
	t.Cleanup(func() { c.Close() })
	return c, nil
}

func TestConnectHost(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := connectTo(t, l)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if err := c.CloseWrite(); err != nil {
			t.Errorf("%s: close one way: %v", at, err)
		}
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: the other side reads %d bytes, %v; want the end", at, n, err)
		}
		c.Close() // marked: it ends with a reset, though the other side has sent nothing
		if err := peer.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = peer.Write([]byte{1})
		}
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: the other side writes: %v, want a reset", at, err)
		}
	}
}

func TestConnectHostIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := connectTo(t, l); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect where nobody listens: %v, want %v", err, unix.ECONNREFUSED)
	}
}

// A listener whose queue is full drops what begins a connection: the kernel tries again
// after a second.
func TestConnectHostWaits(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := addrPortOf(sa)
	for full := 0; ; full++ {
		c, err := connectHost(t.Context(), to, 50*time.Millisecond)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || full > 10 {
			t.Fatalf("connection %d to a listener that accepts none: %v, want %v", full, err, os.ErrDeadlineExceeded)
		}
		defer unix.Close(c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := connectHost(ctx, to, time.Minute); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connect that is given up: %v, want %v", err, os.ErrDeadlineExceeded)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		for range 2 {
			if c, _, err := unix.Accept(fd); err == nil {
				defer unix.Close(c)
			}
		}
	})
	c, err := connectHost(t.Context(), to, 30*time.Second)
	if err != nil {
		t.Fatalf("connect when there is room again: %v", err)
	}
	unix.Close(c)
}

func TestASocketThatMetItself(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	connected(fd, sa)
	if done, err := connected(fd, sa); !done || err != nil {
		t.Fatalf("connect to itself: %v, %v", done, err)
	}
	if !toItself(fd, addrPortOf(sa)) {
		t.Error("it isn't noticed")
	}
	if toItself(fd, netip.MustParseAddrPort("127.0.0.1:1")) {
		t.Error("it is noticed where it isn't so")
	}
}
