package nodeapi

import (
	"context"
	"errors"
	"iter"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "vswitch/control/api/v1"
)

func TestSocketIsPrivateAndGoesAway(t *testing.T) {
	b := newBench(t)
	for path, want := range map[string]os.FileMode{b.socket: 0o600, filepath.Dir(b.socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
	if err := b.server.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestASecondDaemonIsRefused(t *testing.T) {
	b := newBench(t)
	_, err := Start(b.config())
	if err == nil || !strings.Contains(err.Error(), "another daemon") || !strings.Contains(err.Error(), "--socket "+b.socket) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Errorf("the first one afterwards: %v", err)
	}
}

// TestStrangersAreRefused calls as another user. Only root can become one.
func TestStrangersAreRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	b := newBench(t)
	for _, dir := range []string{filepath.Dir(b.socket), filepath.Dir(filepath.Dir(b.socket)), filepath.Dir(filepath.Dir(filepath.Dir(b.socket)))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(b.socket, 0o666); err != nil { // as a careless administrator might
		t.Fatal(err)
	}
	conn := dialAs(t, b.socket, 65534)
	client, err := grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = apiv1.NewNodeClient(client).Version(t.Context(), &apiv1.VersionRequest{})
	wantCode(t, err, codes.PermissionDenied, "65534")
	stream, err := apiv1.NewNodeClient(client).Capture(t.Context(), &apiv1.CaptureRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.PermissionDenied, "65534")
}

// dialAs connects with the credentials of uid: the kernel notes those of the
// thread that connects.
func dialAs(t *testing.T, socket string, uid int) net.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() { // the thread is not unlocked, so it ends with the goroutine
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{err: errno}
			return
		}
		conn, err := net.Dial("unix", socket)
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	if r, err := b.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || !r.Ready {
		t.Errorf("%v, %v", r, err)
	}
	b.ready = Readiness{Reason: "no pod CIDR yet", Limited: true}
	if r, err := b.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || r.Ready || r.Reason != "no pod CIDR yet" || !r.LimitedConnectivity {
		t.Errorf("%v, %v", r, err)
	}
}

func TestVersionSaysWhyAnUpgradeWasRefused(t *testing.T) {
	b := newBench(t)
	b.refused = "it is Monday"
	want := func(refused string) {
		t.Helper()
		if v, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil || v.GetUpgradeRefused() != refused {
			t.Errorf("%v %v, want the refusal %q", v, err, refused)
		}
	}
	want("") // of nothing that was asked for here
	if r, err := b.Upgrade(t.Context(), &apiv1.UpgradeRequest{}); err != nil || r.GetPid() != uint32(os.Getpid()) {
		t.Fatalf("%v %v, want this process", r, err)
	}
	want("it is Monday")
}

func TestAPanicIsAnErrorOfItsCallAlone(t *testing.T) {
	b := newBench(t)
	b.server.cfg.Rows = func(context.Context, string) (iter.Seq[any], error) { panic("bug") }
	for _, err := range b.Client.Rows(t.Context(), "nodes") {
		wantCode(t, err, codes.Internal, "bug")
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Error(err)
	}
}

// TestAConnectionThatIsNotGRPC sends noise and wants the server to live on.
func TestAConnectionThatIsNotGRPC(t *testing.T) {
	b := newBench(t)
	conn, err := net.Dial("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n\x00\xff")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
