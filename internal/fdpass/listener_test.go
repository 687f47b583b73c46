package fdpass

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestASocketThatWasTakenAwayIsPutBack(t *testing.T) {
	for _, takeAway := range []struct {
		name string
		do   func(path string) error
	}{
		{"the file", os.Remove},
		{"the directory", func(path string) error { return os.RemoveAll(filepath.Dir(path)) }},
	} {
		t.Run(takeAway.name, func(t *testing.T) {
			verifyNoLeak(t)
			path := filepath.Join(t.TempDir(), "run", "fds")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			l, err := Bind("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			accepted := make(chan net.Conn)
			ended := make(chan error, 1)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						ended <- err
						return
					}
					accepted <- conn
				}
			}()
			connect := func() (theirs, ours net.Conn) {
				t.Helper()
				theirs, err := net.Dial("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				return theirs, <-accepted
			}
			before, mine := connect()
			defer before.Close()
			defer mine.Close()
			if err := l.InPlace(); err != nil {
				t.Errorf("before: %v", err)
			}
			if err := takeAway.do(path); err != nil {
				t.Fatal(err)
			}
			if err := l.InPlace(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("taken away: %v, want that it is missing", err)
			}
			if err := l.Restore(); err != nil {
				t.Fatal(err)
			}
			if err := l.InPlace(); err != nil {
				t.Errorf("put back: %v", err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != socketMode {
				t.Errorf("put back with mode %v (%v), want %v", info.Mode(), err, fs.FileMode(socketMode))
			}
			after, mineAfter := connect()
			after.Close()
			mineAfter.Close()

			if _, err := before.Write([]byte("x")); err != nil {
				t.Errorf("a connection from before: %v", err)
			}
			if n, err := mine.Read(make([]byte, 1)); n != 1 {
				t.Errorf("a connection from before: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept ended with %v", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("closing leaves the file: %v", err)
			}
			if err := l.Restore(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a closed listener is put back: %v", err)
			}
		})
	}
}

func TestAPathThatIsAnothersIsLeftAlone(t *testing.T) {
	verifyNoLeak(t)
	path := filepath.Join(t.TempDir(), "fds")
	l, err := Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := l.InPlace(); err == nil {
		t.Error("another's file is taken for one's own")
	}
	if err := l.Restore(); !errors.Is(err, ErrInUse) {
		t.Errorf("put back over another's: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := other.InPlace(); err != nil {
		t.Errorf("closing took the other's file away: %v", err)
	}
}

func TestTheServerGoesOnWhereItWasPutBack(t *testing.T) {
	verifyNoLeak(t)
	path, s := serve(t, func(context.Context, Message, []int, Cred) error { return nil })
	for range 3 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := Send(t.Context(), path, Message{}, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("sent to a socket without a file: %v", err)
		}
		if err := s.Restore(); err != nil {
			t.Fatal(err)
		}
		if err := Send(t.Context(), path, Message{}, nil); err != nil {
			t.Fatal(err)
		}
	}
}
