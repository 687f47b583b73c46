package unixcall

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listen serves one connection at a time.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestExchange(t *testing.T) {
	// More than the socket's buffers take at once.
	long := strings.Repeat("0123456789", 100_000)
	path := listen(t, func(c net.Conn) {
		text := make([]byte, len(long))
		if _, err := io.ReadFull(c, text); err == nil {
			c.Write(text)
		}
	})
	c, err := Dial(t.Context(), unix.SOCK_STREAM, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, long); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c) // until the server closes
	if err != nil || string(got) != long {
		t.Errorf("%d bytes came back, %v; want the %d sent", len(got), err, len(long))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
}

func TestContextEndsWhatWaits(t *testing.T) {
	release := make(chan struct{})
	path := listen(t, func(net.Conn) { <-release })
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Dial(ctx, unix.SOCK_STREAM, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.AfterFunc(20*time.Millisecond, cancel)
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes of a silent server, %v", n, err)
	}
	if _, err := c.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after the context's end: %v, want EPIPE", err)
	}
}

// A listener whose queue is full holds up who connects, until the deadline.
func TestConnectEndsWithTheDeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for range 10 { // one or two find a place
		c, err := Dial(ctx, unix.SOCK_STREAM, path)
		if err == nil {
			defer c.Close()
			continue
		}
		if !errors.Is(err, syscall.EAGAIN) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want EAGAIN with the path", err)
		}
		return
	}
	t.Error("a queue without room took ten connections")
}

func TestNobodyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := Dial(t.Context(), unix.SOCK_SEQPACKET, path); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want ENOENT with the path", err)
	}
}
