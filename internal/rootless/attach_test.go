package rootless

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnAPISocketThatIsInUseStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	fd, err := listenAPI(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v; want a socket for its user alone", info.Mode(), err)
	}
	refused := func(when string) {
		t.Helper()
		if other, err := listenAPI(path); err == nil {
			unix.Close(other)
			t.Fatalf("%s, another takes its path", when)
		}
	}
	refused("while it listens")
	for full := false; !full; {
		client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(client)
		err = unix.Connect(client, &unix.SockaddrUnix{Name: path})
		if full = errors.Is(err, unix.EAGAIN); err != nil && !full {
			t.Fatal(err)
		}
	}
	refused("while as many wait as it lets")
	unix.Close(fd)
	if fd, err = listenAPI(path); err != nil {
		t.Fatalf("one that nobody listens at: %v", err)
	}
	unix.Close(fd)
}

func TestAFileInTheWayOfTheAPISocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if fd, err := listenAPI(path); !errors.Is(err, unix.EADDRINUSE) {
		unix.Close(fd)
		t.Errorf("%v, want the address in use", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("it holds %q, %v", text, err)
	}
}
