// Package sdnotify speaks to the service manager that started this process, systemd or
// who does as it does: sd_notify(3), and the manager's file descriptor store
// (sd_pid_notify_with_fds(3), systemd.service(5) FileDescriptorStoreMax=).
//
// What is put into a Store outlives this process, however it ends: the manager passes
// it to the next one it starts (LISTEN_FDS, sd_listen_fds(3)). It is a few datagrams
// and environment variables; coreos/go-systemd would save less than half of it, since
// it can neither send descriptors nor tell an incomplete set.
//
// A store is used where it is offered: NOTIFY_SOCKET is set, and FDSTORE is above zero.
// systemd sets it since version 254; before, from 246 on (FDPOLL=), the unit has to.
package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// variables are the manager's for this process alone, not for those it starts.
var variables = []string{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_USEC", "WATCHDOG_PID"}

// Manager is the service manager. Its methods may be called from any goroutine, and on
// nil, which is none: they do nothing then.
type Manager struct {
	socket   int
	address  unix.SockaddrUnix
	room     int           // descriptors that its store takes
	watchdog time.Duration // how long it waits between two signs of life; zero: for ever
	passed   map[string]int
}

// Open finds the manager in the environment and takes what is meant for this process
// out of it, descriptors too. Nil: there is none. A manager that can't be reached is
// known from the first Notify.
func Open() (*Manager, error) {
	env := map[string]string{}
	for _, name := range variables {
		env[name] = os.Getenv(name)
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("sdnotify: %w", err)
		}
	}
	return open(env, os.Getpid())
}

func open(env map[string]string, pid int) (*Manager, error) {
	address := env["NOTIFY_SOCKET"]
	if address == "" {
		return nil, nil
	}
	if address[0] != '/' && address[0] != '@' { // package unix writes an abstract address the same way
		return nil, fmt.Errorf("sdnotify: NOTIFY_SOCKET=%s: want a path, or an abstract address, which begins with @", address)
	}
	socket, err := newSocket()
	if err != nil {
		return nil, fmt.Errorf("sdnotify: %w", err)
	}
	m := &Manager{socket: socket, address: unix.SockaddrUnix{Name: address}}
	if m.room, err = number(env, "FDSTORE", 0); err == nil && forUs(env["WATCHDOG_PID"], pid, true) {
		var usec int
		usec, err = number(env, "WATCHDOG_USEC", 0)
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	if err == nil && forUs(env["LISTEN_PID"], pid, false) {
		err = m.take(env)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(socket))
	}
	return m, nil
}

// sendPatience is how long a manager may be too busy to take a datagram.
const sendPatience = time.Second

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	patience := unix.NsecToTimeval(int64(sendPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return -1, errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
	}
	return fd, nil
}

// forUs reports whether variables with a process id beside them are this process's.
func forUs(text string, pid int, without bool) bool {
	if text == "" {
		return without
	}
	return text == strconv.Itoa(pid)
}

func number(env map[string]string, name string, none int) (int, error) {
	if env[name] == "" {
		return none, nil
	}
	n, err := strconv.Atoi(env[name])
	if err != nil || n < 0 {
		return 0, fmt.Errorf("sdnotify: %s=%q: want a number", name, env[name])
	}
	return n, nil
}

// firstFD is SD_LISTEN_FDS_START.
const firstFD = 3

// take notes the descriptors that were passed, by name.
func (m *Manager) take(env map[string]string) error {
	n, err := number(env, "LISTEN_FDS", 0)
	if err != nil {
		return err
	}
	names := strings.Split(env["LISTEN_FDNAMES"], ":")
	m.passed = map[string]int{}
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		if len(names) != n || m.passed[names[i]] != 0 { // nothing to know it by
			unix.Close(fd)
			continue
		}
		m.passed[names[i]] = fd
	}
	return nil
}

// Notify sends assignments such as READY=1, a line each.
func (m *Manager) Notify(assignments ...string) error { return m.send(-1, assignments...) }

func (m *Manager) send(fd int, assignments ...string) error {
	if m == nil {
		return nil
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	text := []byte(strings.Join(assignments, "\n"))
	var err error = unix.EINTR // a socket with a time limit is not waited for again by itself
	for errors.Is(err, unix.EINTR) {
		err = unix.Sendmsg(m.socket, text, rights, &m.address, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		return fmt.Errorf("sdnotify: tell the service manager %q: %w", assignments, err)
	}
	return nil
}

// Ready says that the service is up, for the first time or again after Reloading.
func (m *Manager) Ready() error { return m.Notify("READY=1") }

// Stopping says that the service ends.
func (m *Manager) Stopping() error { return m.Notify("STOPPING=1") }

// Reloading says that the service goes on as another until Ready.
func (m *Manager) Reloading() error {
	if m == nil {
		return nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("sdnotify: %w", err)
	}
	return m.Notify("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// KeepAlive sends signs of life until ctx ends, twice as often as asked for. It
// returns at once where none are.
func (m *Manager) KeepAlive(ctx context.Context) {
	if m == nil || m.watchdog == 0 {
		return
	}
	tick := time.NewTicker(max(m.watchdog/2, time.Millisecond))
	defer tick.Stop()
	for {
		_ = m.Notify("WATCHDOG=1") // a manager that is not there asks for none
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
