package apiv1

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type versionOnly struct {
	UnimplementedNodeServer
}

func (versionOnly) Version(context.Context, *VersionRequest) (*VersionReply, error) {
	return &VersionReply{Version: "v0"}, nil
}

// serve answers Version on a socket until the returned function is called.
func serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	RegisterNodeServer(s, versionOnly{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	return func() { s.Stop(); <-done }
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestDial(t *testing.T) {
	// A path that would not survive being parsed as a URL.
	socket := filepath.Join(t.TempDir(), "a%b?c#d.sock")
	stop := serve(t, socket)
	c, err := Dial(deadline(t), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	version := func() error {
		_, err := c.Version(deadline(t), &VersionRequest{}, grpc.WaitForReady(true))
		return err
	}
	if err := version(); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.Version(deadline(t), &VersionRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("with the daemon gone: %v, want Unavailable", err)
	}
	defer serve(t, socket)()
	if err := version(); err != nil {
		t.Errorf("with the daemon back: %v", err)
	}
}

func TestDialSaysWhyItFailed(t *testing.T) {
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, tt := range []struct {
		name, socket string
		want         error
	}{
		{"no socket", filepath.Join(t.TempDir(), "none.sock"), syscall.ENOENT},
		{"a socket nobody listens on", stale, syscall.ECONNREFUSED},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Dial(deadline(t), tt.socket)
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestCloseOfAnUnusedClientClosesItsConnection(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(deadline(t), socket)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
