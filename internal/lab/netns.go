package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A namespace is kept alive by a bind mount, as `ip netns add` does it, so that
// `ip netns exec NAME` and a CNI_NETNS path both work. The mounts lie in
// /run/netns where that can be written (root, or an ordinary user after
// EnterUserNamespace, who has a /run of their own) and in the lab's directory
// otherwise.
//
// In the temporary directory each live lab holds a lock file, vs-SUFFIX.lock:
// whoever can take the lock knows that its lab is dead and removes what carries
// its suffix.

const (
	namedDir   = "/run/netns"
	namePrefix = "vs-"
	lockExt    = ".lock"
)

// Namespace is one network namespace.
type Namespace struct {
	// Name is unique on the machine; Path is where the namespace is mounted.
	Name, Path string

	lab    *Lab
	here   bool // this process's own: never entered, changed or removed
	handle *os.File
	nl     *netlink.Handle
	// borrowed: a process has it, and it isn't mounted.
	borrowed bool
}

// NewNamespace makes a namespace with nothing in it but a `lo` that is down, as
// a container runtime hands it to a CNI plugin. role names it for people.
func (l *Lab) NewNamespace(role string) (*Namespace, error) {
	name := namePrefix + l.Suffix + "-" + role
	n := &Namespace{Name: name, Path: filepath.Join(l.nsDir, name), lab: l}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	if err := mountNew(n.Path); err != nil {
		return nil, fmt.Errorf("lab: new network namespace %s: %w", name, err)
	}
	l.spaces = append(l.spaces, n) // from here on Close removes it
	var err error
	if n.handle, err = os.Open(n.Path); err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w", name, err)
	}
	err = n.Do(func() (err error) {
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: netlink in %s: %w", name, err)
	}
	return n, nil
}

var errClosed = errors.New("lab: closed")

// Do runs f on a thread that is inside the namespace: sockets f opens and files
// it reads under /proc/sys/net are the namespace's. Goroutines f starts are not
// inside.
func (n *Namespace) Do(f func() error) error {
	if n.here {
		return onThrowawayThread(f)
	}
	if n.handle == nil {
		return fmt.Errorf("lab: namespace %s is closed", n.Name)
	}
	return onThrowawayThread(func() error {
		if err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: enter namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// onThrowawayThread runs f on an OS thread that ends with it, so that no other
// goroutine ever runs in a namespace f entered. A thread costs some 20 us,
// less than a mistake in putting it back.
func onThrowawayThread(f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			// The main thread can't end, and its namespace is what /proc/PID/ns
			// shows of the process: keep it busy while another does the work.
			defer runtime.UnlockOSThread()
			errs <- onThrowawayThread(f)
			return
		}
		errs <- f()
	}()
	return <-errs
}

// mountNew makes a network namespace and keeps it at path.
func mountNew(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
	if err != nil {
		os.Remove(path)
	}
	return err
}

// Close removes the namespace before its lab ends. Processes in it keep it
// alive, invisible, until they end.
func (n *Namespace) Close() error {
	n.lab.mu.Lock()
	// A new slice: the lab's Close may be walking the old one.
	n.lab.spaces = slices.DeleteFunc(slices.Clone(n.lab.spaces), func(o *Namespace) bool { return o == n })
	n.lab.mu.Unlock()
	return n.close()
}

func (n *Namespace) close() error {
	if n.here {
		return nil
	}
	if n.nl != nil {
		n.nl.Close()
	}
	if n.handle != nil {
		n.handle.Close()
	}
	if n.borrowed {
		return nil
	}
	return unmount(n.Path)
}

func unmount(path string) error {
	// EINVAL: not a mount, because the mount itself failed. ENOENT: gone already.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("lab: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// Sysctl sets one of the namespace's own settings, by its name with dots or slashes.
func (n *Namespace) Sysctl(key, value string) error {
	path := "/proc/sys/" + key
	if !strings.Contains(key, "/") {
		path = "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	}
	return n.Do(func() error {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("lab: %s: set %s=%s: %w", n.Name, key, value, err)
		}
		return nil
	})
}

// AllowPing opens ICMP echo sockets to every group, which most container
// runtimes do as well and Linux by default doesn't, to root neither.
func (n *Namespace) AllowPing() error {
	const key = "net.ipv4.ping_group_range"
	if err := n.Sysctl(key, "0 2147483647"); err == nil {
		return nil
	}
	return n.Sysctl(key, "0 0") // a user namespace that maps one group knows no other
}

// namespaceDir finds a directory for the mounts. Where /run can't be written
// it is the lab's own: this process is then in a mount namespace of its own,
// and what it mounts goes with it.
func namespaceDir(labDir string) (string, error) {
	err := os.MkdirAll(namedDir, 0o755)
	if err == nil {
		err = unix.Access(namedDir, unix.W_OK)
	}
	if err == nil {
		return namedDir, nil
	}
	dir := filepath.Join(labDir, "netns")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("lab: a place for network namespaces: %w", err)
	}
	return dir, nil
}

// declare makes and locks the lab's lock file. It gets its name only once it is
// locked, or a sweep could take it in between.
func declare(suffix string) (*os.File, error) {
	f, err := os.CreateTemp("", "."+namePrefix)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Rename(f.Name(), lockPath(suffix))
	}
	if err != nil {
		os.Remove(f.Name())
		f.Close()
		return nil, fmt.Errorf("lab: lock file: %w", err)
	}
	return f, nil
}

func lockPath(suffix string) string {
	return filepath.Join(os.TempDir(), namePrefix+suffix+lockExt)
}

// undeclare is the last a lab does.
func undeclare(suffix string, lock *os.File) {
	os.Remove(lockPath(suffix))
	lock.Close()
}

// sweep removes what labs left whose process was killed.
func sweep() error {
	locks, err := filepath.Glob(lockPath("*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range locks {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // closed since, or another user's
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, removeLeft(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), namePrefix), lockExt)))
		}
		f.Close()
	}
	return errors.Join(errs...)
}

// removeLeft removes the namespaces, cgroups and files of a dead lab, its lock last.
func removeLeft(suffix string) error {
	err := error(nil)
	for _, dir := range []string{namedDir, filepath.Join(labDir(suffix), "netns")} {
		left, globErr := filepath.Glob(filepath.Join(dir, namePrefix+suffix+"-*"))
		err = errors.Join(err, globErr)
		for _, ns := range left {
			err = errors.Join(err, unmount(ns))
		}
	}
	if err = errors.Join(err, removeGroups(suffix), os.RemoveAll(labDir(suffix)), os.RemoveAll(runtimeDir(suffix))); err != nil {
		return err
	}
	return os.Remove(lockPath(suffix))
}
