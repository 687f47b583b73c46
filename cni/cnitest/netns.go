package cnitest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Netns is a network namespace as a runtime makes it for a pod: with a lo that is
// down. It is mounted on Path, a file in a temporary directory.
type Netns struct {
	Path   string
	t      testing.TB
	handle netns.NsHandle
}

// NewNetns makes a namespace that goes with the test. The caller must be root.
func NewNetns(t testing.TB) *Netns {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsns")
	if err != nil {
		t.Fatal(err)
	}
	n := &Netns{Path: filepath.Join(dir, "ns"), t: t}
	if err := os.WriteFile(n.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err = onOwnThread(func() (err error) {
		if n.handle, err = netns.New(); err != nil { // and this thread is in it
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, "")
	})
	if err != nil {
		os.RemoveAll(dir)
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() {
		n.Remove()
		os.RemoveAll(dir)
	})
	return n
}

// Remove takes the namespace away; the file under Path stays, as it does when a
// runtime is killed. It is idempotent.
func (n *Netns) Remove() {
	if !n.handle.IsOpen() {
		return
	}
	n.handle.Close()
	if err := unix.Unmount(n.Path, unix.MNT_DETACH); err != nil {
		n.t.Errorf("unmount %s: %v", n.Path, err)
	}
}

// Do runs f on a thread inside the namespace, with a netlink handle of it.
func (n *Netns) Do(f func(*netlink.Handle) error) error {
	return onOwnThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

// onOwnThread runs f on a thread that ends with it.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
