package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
	"vswitch/internal/sdnotify/sdnotifytest"
)

var quiet = slog.New(slog.DiscardHandler)

// manager is the stand-in and this side of it.
func manager(t *testing.T, room int) (*sdnotifytest.Manager, *Manager) {
	t.Helper()
	there := sdnotifytest.New(t, room)
	here, err := open(map[string]string{"NOTIFY_SOCKET": there.Socket, "FDSTORE": fmt.Sprint(room)}, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(here.socket) })
	return there, here
}

func files(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	for i := range n {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, fmt.Appendf(nil, "%d", i)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds
}

// next is a store as the next process has it. Descriptors can't be put at number 3 of
// this process, so it is told of those at other numbers.
func next(t *testing.T, there *sdnotifytest.Manager) *Store {
	t.Helper()
	_, env, passed := there.Start()
	m := &Manager{room: there.Room, passed: map[string]int{}}
	for _, f := range passed {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.passed[f.Name()] = fd
		f.Close()
	}
	if want := len(passed); want > 0 && !slices.Contains(env, fmt.Sprintf("LISTEN_FDS=%d", want)) {
		t.Errorf("environment %q without %d descriptors", env, want)
	}
	here, err := open(map[string]string{"NOTIFY_SOCKET": there.Socket}, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(here.socket) })
	m.socket, m.address = here.socket, here.address
	s, err := m.NewStore(quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// contents reads what files of a set hold, each its own index when it was made.
func contents(t *testing.T, s fdstore.Store, name string) string {
	t.Helper()
	fds, err := s.Get(name)
	if err != nil {
		return err.Error()
	}
	var all []string
	for _, fd := range fds {
		b := make([]byte, 8)
		n, err := unix.Pread(fd, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b[:n]))
		unix.Close(fd)
	}
	return strings.Join(all, " ")
}

func TestWhatIsPutTheNextProcessGets(t *testing.T) {
	there, here := manager(t, 100)
	s, err := here.NewStore(quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fds := files(t, 12)
	for name, set := range map[string][]int{"tap/a/eth0": fds[:11], "flows": fds[11:], "gone": files(t, 1)} {
		if err := s.Put(name, set); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove("gone"); err != nil {
		t.Fatal(err)
	}
	// Replaced, with some that are the same: the store has no descriptor twice.
	swapped := []int{fds[3], fds[0], fds[1]}
	if err := s.Put("tap/a/eth0", swapped); err != nil {
		t.Fatal(err)
	}
	if err := here.Ready(); err != nil {
		t.Fatal(err)
	}
	there.Hears("READY=1", 1)
	for range 2 { // a process that did nothing leaves all as it was
		n := next(t, there)
		if got, want := contents(t, n, "tap/a/eth0"), "3 0 1"; got != want {
			t.Errorf("the next process finds %q, want %q", got, want)
		}
		if got, want := contents(t, n, "flows"), "11"; got != want {
			t.Errorf("the next process finds %q, want %q", got, want)
		}
		if _, err := n.Get("gone"); !errors.Is(err, fdstore.ErrNotFound) {
			t.Errorf("what was removed: %v", err)
		}
	}
	n := next(t, there)
	for _, name := range []string{"tap/a/eth0", "flows"} {
		if err := n.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.manager.Ready(); err != nil {
		t.Fatal(err)
	}
	there.Hears("READY=1", 2)
	if names := there.Names(); len(names) != 0 {
		t.Errorf("left with the manager: %q", names)
	}
}

func TestAStoreWithoutRoomKeepsWhatItCan(t *testing.T) {
	there, here := manager(t, 3)
	s, err := here.NewStore(quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, name := range []string{"a", "b"} { // two each: there is room for one set
		if err := s.Put(name, files(t, 2)); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, s, name); got != "0 1" {
			t.Errorf("%s is kept as %q", name, got)
		}
	}
	if err := here.Ready(); err != nil {
		t.Fatal(err)
	}
	there.Hears("READY=1", 1)
	if got, want := there.Names(), []string{"#1.1/2", "a#1.0/2"}; !slices.Equal(got, want) {
		t.Errorf("the manager has %q, want %q", got, want)
	}
}

// TestWhatIsNotWholeIsNotUsed passes what a manager could have after a crash between
// two descriptors of a set, or from somebody else.
func TestWhatIsNotWholeIsNotUsed(t *testing.T) {
	there, here := manager(t, 100)
	fds := files(t, 6)
	for i, name := range []string{"half#1.0/2", "#2.1/2", "vswitch.socket", "odd#3.7/2", "other#3#0/1", "#4.0/1"} {
		if err := here.send(fds[i], "FDSTORE=1", "FDNAME="+name, "FDPOLL=0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := here.Ready(); err != nil {
		t.Fatal(err)
	}
	there.Hears("READY=1", 1)
	s := next(t, there)
	if names, err := s.Names(); len(names) != 0 || err != nil {
		t.Errorf("used: %q, %v", names, err)
	}
	if err := s.manager.Ready(); err != nil {
		t.Fatal(err)
	}
	there.Hears("READY=1", 2)
	if names := there.Names(); len(names) != 0 {
		t.Errorf("left with the manager, where it takes room: %q", names)
	}
}

// A machine of many cores has many queues a pod, and a manager that passes on more names
// than a variable of the environment holds starts nothing any more.
func TestTheNextProcessCanBeStarted(t *testing.T) {
	for _, tt := range []struct {
		name         string
		pods, queues int
		all          bool // are safe
	}{
		{"16 queues each", 110, 16, true},
		{"one queue each", 1600, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			there, here := manager(t, tt.pods*tt.queues)
			s, err := here.NewStore(quiet)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for pod := range tt.pods {
				if err := s.Put(fmt.Sprintf("tap/%064d/eth0", pod), files(t, tt.queues)); err != nil {
					t.Fatal(err)
				}
			}
			if err := here.Ready(); err != nil {
				t.Fatal(err)
			}
			there.Hears("READY=1", 1)
			names := there.Names()
			if len(names) == 0 || tt.all && len(names) != tt.pods*tt.queues {
				t.Errorf("%d descriptors are safe, want %d", len(names), tt.pods*tt.queues)
			}
			c := exec.Command("/bin/true")
			c.Env = []string{"LISTEN_FDNAMES=" + strings.Join(names, ":")}
			if err := c.Run(); err != nil {
				t.Errorf("with %d names: %v", len(names), err)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	there, _ := manager(t, 1)
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string // in the error; empty: none
	}{
		{"no manager", nil, ""},
		{"an address of another kind", map[string]string{"NOTIFY_SOCKET": "vsock:2:1234"}, "want a path"},
		{"room that is no number", map[string]string{"NOTIFY_SOCKET": there.Socket, "FDSTORE": "many"}, `FDSTORE="many"`},
		{"a watchdog that is no number", map[string]string{"NOTIFY_SOCKET": there.Socket, "WATCHDOG_USEC": "-1"}, "WATCHDOG_USEC"},
		{"a watchdog of another process", map[string]string{"NOTIFY_SOCKET": there.Socket, "WATCHDOG_USEC": "-1", "WATCHDOG_PID": "1"}, ""},
		{"descriptors of another process", map[string]string{"NOTIFY_SOCKET": there.Socket, "LISTEN_PID": "1", "LISTEN_FDS": "900"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := open(tt.env, os.Getpid())
			if m != nil {
				unix.Close(m.socket)
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestNobodyListensToNil(t *testing.T) {
	var m *Manager
	m.KeepAlive(t.Context())
	if err := errors.Join(m.Ready(), m.Reloading(), m.Stopping()); err != nil {
		t.Error(err)
	}
}

func TestSignsOfLifeComeTwiceAsOftenAsAsked(t *testing.T) {
	there := sdnotifytest.New(t, 0)
	m, err := open(map[string]string{"NOTIFY_SOCKET": there.Socket, "WATCHDOG_USEC": "20000"}, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(m.socket)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.KeepAlive(ctx); close(done) }()
	began := time.Now()
	there.Hears("WATCHDOG=1", 6)
	if took := time.Since(began); took < 45*time.Millisecond {
		t.Errorf("six signs of life within %v", took)
	}
	cancel()
	<-done
}
