// Package sdnotifytest is a stand-in of systemd's service manager, as far as a service
// sees it: it hears sd_notify(3), keeps descriptors as systemd.service(5) says of
// FileDescriptorStoreMax=, and passes them to the next process of the service.
package sdnotifytest

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is one service's.
type Manager struct {
	// Socket is the path of NOTIFY_SOCKET.
	Socket string
	// Room is FileDescriptorStoreMax.
	Room int

	t    testing.TB
	conn *net.UnixConn
	done chan struct{}

	mu    sync.Mutex
	said  map[string]int // how often an assignment came; guarded by mu, as is all below
	order []string
	store []entry
	err   error // what a real one would have made of it
}

type entry struct {
	name string
	fd   int
	ino  uint64
}

// New listens in a directory of the test's own. It is closed with the test, which
// fails where something was said that a real one would refuse.
func New(t testing.TB, room int) *Manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd")
	if err != nil {
		t.Fatal(err)
	}
	m := &Manager{Socket: dir + "/notify", Room: room, t: t, done: make(chan struct{}), said: map[string]int{}}
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.Socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go m.listen()
	t.Cleanup(func() {
		m.conn.Close()
		<-m.done
		if m.err != nil {
			t.Errorf("the service manager heard: %v", m.err)
		}
		for _, e := range m.store {
			unix.Close(e.fd)
		}
		os.RemoveAll(dir)
	})
	return m
}

func (m *Manager) listen() {
	defer close(m.done)
	text, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(253*4))
	for {
		n, c, _, _, err := m.conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		var fds []int
		items, _ := unix.ParseSocketControlMessage(control[:c])
		for i := range items {
			rights, _ := unix.ParseUnixRights(&items[i])
			fds = append(fds, rights...)
		}
		m.mu.Lock()
		m.hear(strings.Split(string(text[:n]), "\n"), fds)
		m.mu.Unlock()
	}
}

func (m *Manager) hear(lines []string, fds []int) {
	values := map[string]string{}
	for _, l := range lines {
		name, value, ok := strings.Cut(l, "=")
		if !ok {
			m.err = fmt.Errorf("%q is no assignment", l)
		}
		values[name] = value
		m.said[l]++
		if name != "WATCHDOG" && name != "MONOTONIC_USEC" && !strings.HasPrefix(name, "FD") {
			m.order = append(m.order, l)
		}
	}
	name := values["FDNAME"]
	switch {
	case values["FDSTORE"] == "1":
		if !valid(name) || len(fds) == 0 || values["FDPOLL"] != "0" {
			m.err = fmt.Errorf("%q with %d descriptors", lines, len(fds))
		}
		for _, fd := range fds {
			m.keep(name, fd)
		}
		return
	case values["FDSTOREREMOVE"] == "1":
		if !valid(name) {
			m.err = fmt.Errorf("%q", lines)
		}
		m.store = slices.DeleteFunc(m.store, func(e entry) bool {
			if e.name == name {
				unix.Close(e.fd)
			}
			return e.name == name
		})
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// keep is service_add_fd_store: what is there already, under whatever name, and what
// there is no room for is closed.
func (m *Manager) keep(name string, fd int) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		m.err = err
	}
	if len(m.store) >= m.Room || slices.ContainsFunc(m.store, func(e entry) bool { return e.ino == st.Ino && same(e.fd, fd) }) {
		unix.Close(fd)
		return
	}
	m.store = append([]entry{{name, fd, st.Ino}}, m.store...) // it gives them back in no order to rely on
}

// same is kcmp(2), KCMP_FILE.
func same(a, b int) bool {
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}

// valid is fdname_is_valid.
func valid(name string) bool {
	return name != "" && len(name) <= 255 && !strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c >= 0x7f || c == ':' })
}

// Start is what the next process gets: a wrapper ahead of its program, since LISTEN_PID
// is the process's own, its environment, and its descriptors from 3 on, which the
// caller closes.
func (m *Manager) Start() (wrapper, env []string, files []*os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, e := range m.store {
		fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		files, names = append(files, os.NewFile(uintptr(fd), e.name)), append(names, e.name)
	}
	env = []string{"NOTIFY_SOCKET=" + m.Socket, "FDSTORE=" + strconv.Itoa(m.Room)}
	if len(files) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return []string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, env, files
}

// Names of the entries kept, sorted.
func (m *Manager) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, e := range m.store {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return names
}

// Said is what was said in order, descriptors and signs of life aside.
func (m *Manager) Said() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.order)
}

// Hears waits until an assignment has come n times.
func (m *Manager) Hears(assignment string, n int) {
	m.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) { // between two looks
		m.mu.Lock()
		got := m.said[assignment]
		m.mu.Unlock()
		if got >= n {
			return
		}
		if time.Since(began) > 10*time.Second {
			m.t.Fatalf("%s came %d times within 10 s, want %d", assignment, got, n)
		}
	}
}
