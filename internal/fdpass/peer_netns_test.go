package fdpass

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPeerOfAnotherUserIsRefused connects as another user through a socket whose
// mode was opened up: the credentials must stop it alone.
func TestPeerOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes another user")
	}
	verifyNoLeak(t)
	path, _ := serve(t, func(_ context.Context, _ Message, fds []int, peer Cred) error {
		closeAll(fds)
		t.Errorf("handler called for %+v", peer)
		return nil
	})
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	fds := pipeFDs(t, 2)
	type result struct {
		answer string
		err    error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its identity
		answer, err := asNobody(path, fds)
		got <- result{answer, err}
	}()
	r := <-got
	if r.err != nil || !strings.Contains(r.answer, "user 65534 may not use this socket") {
		t.Errorf("answer %q, %v, want a refusal", r.answer, r.err)
	}
}

// asNobody sends fds as user 65534. The bare system call changes this thread only.
func asNobody(path string, fds []int) (string, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(s)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
		return "", errno
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: path}); err != nil {
		return "", err
	}
	if err := sendRaw(s, []byte(`{"token":"t"}`), unix.UnixRights(fds...)); err != nil {
		return "", err
	}
	buf := make([]byte, MaxMessageBytes)
	n, err := unix.Read(s, buf)
	return string(buf[:max(n, 0)]), err
}
