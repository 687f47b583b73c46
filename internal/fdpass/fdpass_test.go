package fdpass

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openFDs counts the descriptors of this process. The directory's own is in every
// count.
func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// verifyNoLeak compares the descriptors at the end of the test with those now.
// Register it first, so that it runs after every other clean-up.
func verifyNoLeak(t *testing.T) {
	t.Helper()
	// The first descriptor that netpoll waits on brings its own two.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	before := openFDs(t)
	t.Cleanup(func() {
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open after the test, %d before", after, before)
		}
	})
}

// serve starts a server with handler h and returns its socket's path.
func serve(t *testing.T, h Handle) (string, *Server) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fds")
	s, err := Listen(path, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path, s
}

func closeThen(err error) Handle {
	return func(_ context.Context, _ Message, fds []int, _ Cred) error {
		closeAll(fds)
		return err
	}
}

// pipeFDs makes n descriptors to send: both ends of pipes.
func pipeFDs(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	t.Cleanup(func() { closeAll(fds) })
	for len(fds) < n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, p[0], p[1])
	}
	return fds[:n:n]
}

func TestDescriptorsArriveInOrderWithTheirMessage(t *testing.T) {
	verifyNoLeak(t)
	type got struct {
		m    Message
		fds  []int
		peer Cred
	}
	handled := make(chan got, 1)
	path, _ := serve(t, func(_ context.Context, m Message, fds []int, peer Cred) error {
		handled <- got{m, fds, peer}
		return nil
	})
	sent := pipeFDs(t, 2)
	want := Message{Token: "a token", Features: 0x3f}
	if err := Send(t.Context(), path, want, sent); err != nil {
		t.Fatal(err)
	}
	g := <-handled
	defer closeAll(g.fds)
	if g.m != want {
		t.Errorf("message %+v, want %+v", g.m, want)
	}
	if g.peer.UID != uint32(os.Geteuid()) || g.peer.PID != int32(os.Getpid()) {
		t.Errorf("peer %+v, want this process", g.peer)
	}
	if len(g.fds) != 2 {
		t.Fatalf("%d descriptors, want 2", len(g.fds))
	}
	// What is written to the sender's write end must come out of the received read end.
	if _, err := unix.Write(sent[1], []byte("through")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := unix.Read(g.fds[0], buf)
	if err != nil || string(buf[:n]) != "through" {
		t.Errorf("read %q, %v from the received descriptor", buf[:n], err)
	}
	for _, fd := range g.fds {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v: not close-on-exec", fd, flags, err)
		}
	}
}

func TestSendWithoutDescriptorsAndWithTheMost(t *testing.T) {
	verifyNoLeak(t)
	counts := make(chan int, 1)
	path, _ := serve(t, func(_ context.Context, _ Message, fds []int, _ Cred) error {
		counts <- len(fds)
		closeAll(fds)
		return nil
	})
	for _, n := range []int{0, 1, MaxFDs} {
		if err := Send(t.Context(), path, Message{Token: "t"}, pipeFDs(t, n)); err != nil {
			t.Errorf("%d descriptors: %v", n, err)
			continue
		}
		if got := <-counts; got != n {
			t.Errorf("%d descriptors arrived, want %d", got, n)
		}
	}
}

func TestHandlerErrorReachesTheClient(t *testing.T) {
	verifyNoLeak(t)
	for _, tt := range []struct{ name, text, want string }{
		{"plain", "unknown token", "unknown token"},
		{"empty text is still a refusal", "", ""},
		{"long text is cut", strings.Repeat("\x01", 9000), strings.Repeat("\x01", maxErrorBytes)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := serve(t, closeThen(errors.New(tt.text)))
			err := Send(t.Context(), path, Message{}, pipeFDs(t, 2))
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Text != tt.want {
				t.Errorf("got %v, want a RefusedError with the handler's text", err)
			}
		})
	}
}

func TestSendRefusesWhatTheServerWould(t *testing.T) {
	verifyNoLeak(t)
	path, _ := serve(t, closeThen(nil))
	if err := Send(t.Context(), path, Message{Token: strings.Repeat("x", MaxMessageBytes)}, nil); err == nil {
		t.Error("message beyond MaxMessageBytes was sent")
	}
	if err := Send(t.Context(), path, Message{}, make([]int, MaxFDs+1)); err == nil {
		t.Error("more than MaxFDs descriptors were sent")
	}
	if err := Send(t.Context(), path, Message{}, []int{-1}); !errors.Is(err, unix.EBADF) {
		t.Errorf("bad descriptor: %v, want EBADF", err)
	}
}

// TestHostileMessages sends what Send would not, with bare system calls.
func TestHostileMessages(t *testing.T) {
	for _, tt := range []struct {
		name string
		text []byte
		fds  int
		want string // in the answer; empty: the connection ends without a good one
	}{
		{"too many descriptors", []byte(`{"token":"t"}`), MaxFDs + 1, "descriptors lost"},
		{"as many as Linux sends", []byte(`{"token":"t"}`), 253, "descriptors lost"},
		{"no JSON", []byte(`hello`), 2, "invalid character"},
		{"wrong type", []byte(`{"token":1}`), 2, "cannot unmarshal"},
		{"two values", []byte(`{"token":"t"} {}`), 2, "after top-level value"},
		{"one byte too long", append(make([]byte, MaxMessageBytes), ' '), 2, "longer than"},
		{"far too long", make([]byte, 65536), 2, "longer than"},
		{"empty, with descriptors", nil, 2, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			verifyNoLeak(t)
			path, _ := serve(t, func(_ context.Context, m Message, fds []int, _ Cred) error {
				closeAll(fds)
				t.Errorf("handler called with %+v", m)
				return nil
			})
			s := connect(t, path)
			var rights []byte
			if tt.fds > 0 {
				rights = unix.UnixRights(pipeFDs(t, tt.fds)...)
			}
			if err := sendRaw(s, tt.text, rights); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, MaxMessageBytes)
			n, err := unix.Read(s, buf)
			if err != nil || !strings.Contains(string(buf[:n]), tt.want) || !strings.Contains(string(buf[:n]), `"ok":false`) {
				t.Errorf("answer %q, %v, want a refusal with %q", buf[:n], err, tt.want)
			}
		})
	}
}

// connect opens a blocking SOCK_SEQPACKET connection to path.
func connect(t *testing.T, path string) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	return s
}

// sendRaw is sendmsg(2); the wrappers of x/sys put a byte into an empty message.
func sendRaw(s int, text, control []byte) error {
	var m unix.Msghdr
	var iov unix.Iovec
	if len(text) > 0 {
		iov.Base = &text[0]
		iov.SetLen(len(text))
		m.Iov, m.Iovlen = &iov, 1
	}
	if len(control) > 0 {
		m.Control = &control[0]
		m.SetControllen(len(control))
	}
	return sendmsg(s, &m)
}

func TestPeerThatSaysNothingAndLeaves(t *testing.T) {
	verifyNoLeak(t)
	path, _ := serve(t, func(context.Context, Message, []int, Cred) error {
		t.Error("handler called")
		return nil
	})
	s := connect(t, path)
	unix.Shutdown(s, unix.SHUT_WR)
	buf := make([]byte, 256)
	if _, err := unix.Read(s, buf); err != nil {
		t.Error(err)
	}
}

func TestCloseWakesASilentConnection(t *testing.T) {
	verifyNoLeak(t)
	path, server := serve(t, closeThen(nil))
	s := connect(t, path)
	waitConns(t, server, 1)
	if err := server.Close(); err != nil { // would wait for Timeout otherwise
		t.Fatal(err)
	}
	if n, err := unix.Read(s, make([]byte, 8)); n > 0 && err == nil {
		t.Errorf("read %d bytes after Close", n)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file is still there: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// waitConns waits until the server has n connections.
func waitConns(t *testing.T, s *Server, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		have := len(s.conns)
		s.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, want %d", have, n)
		}
	}
}

func TestCloseCancelsAHandlerAndWaitsForIt(t *testing.T) {
	verifyNoLeak(t)
	entered := make(chan struct{})
	var finished bool
	path, server := serve(t, func(ctx context.Context, _ Message, fds []int, _ Cred) error {
		close(entered)
		<-ctx.Done()
		closeAll(fds)
		finished = true
		return ctx.Err()
	})
	sent := make(chan error, 1)
	fds := pipeFDs(t, 2)
	go func() { sent <- Send(context.Background(), path, Message{}, fds) }()
	<-entered
	server.Close()
	if !finished {
		t.Error("Close returned before the handler did")
	}
	if err := <-sent; err == nil {
		t.Error("Send succeeded although the server was closed under it")
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	verifyNoLeak(t)
	path := filepath.Join(t.TempDir(), "fds")
	s, err := Listen(path, closeThen(nil), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	connect(t, path)
	waitConns(t, s, 1)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestSendEndsWithItsContext(t *testing.T) {
	verifyNoLeak(t)
	release := make(chan struct{})
	path, _ := serve(t, func(_ context.Context, _ Message, fds []int, _ Cred) error {
		closeAll(fds)
		<-release
		return nil
	})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Send(ctx, path, Message{}, pipeFDs(t, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Send: %v, want DeadlineExceeded", err)
	}
	if err := Send(t.Context(), path+"-absent", Message{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Send to an absent socket: %v", err)
	}
}

func TestBind(t *testing.T) {
	verifyNoLeak(t)
	dir := t.TempDir()
	old := syscall.Umask(0) // so that only Bind can be what takes the bits away
	defer syscall.Umask(old)

	path := filepath.Join(dir, "socket")
	l, err := Bind("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	for _, network := range []string{"unixpacket", "unix"} {
		if _, err := Bind(network, path); !errors.Is(err, ErrInUse) {
			t.Errorf("second Bind(%s): %v, want ErrInUse", network, err)
		}
	}

	l.socket.SetUnlinkOnClose(false) // as a killed process leaves it
	l.socket.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = Bind("unix", path)
	if err != nil {
		t.Fatalf("stale socket was not replaced: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Errorf("new socket does not answer: %v", err)
	} else {
		c.Close()
	}
	l.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Bind("unix", file); !errors.Is(err, os.ErrExist) {
		t.Errorf("Bind over a file: %v, want ErrExist", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("Bind touched a file that is no socket")
	}
	if _, err := Bind("unix", filepath.Join(dir, "no", "socket")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Bind in an absent directory: %v", err)
	}
}
