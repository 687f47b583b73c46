package netif

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNoNamespace: a path leads to no network namespace. Namespaces that were mounted
// under /run leave an ordinary file there when the mount is gone.
var ErrNoNamespace = errors.New("not a network namespace")

// Namespace is an open network namespace, which stays as long as it is open.
type Namespace struct {
	path   string
	handle netns.NsHandle
}

// OpenNamespace opens the namespace at path; errors.Is ErrNoNamespace if there is none.
// The caller closes it.
func OpenNamespace(path string) (*Namespace, error) {
	h, err := netns.GetFromPath(path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("%w: %w", ErrNoNamespace, err)
	case err != nil:
		return nil, err
	}
	// NS_GET_NSTYPE (ioctl_ns(2)) fails on anything but a namespace.
	kind, err := unix.IoctlRetInt(int(h), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		h.Close()
		return nil, ErrNoNamespace
	}
	return &Namespace{path: path, handle: h}, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() { n.handle.Close() }

// ID is the number that the kernel tells namespaces apart by, until the next boot.
func (n *Namespace) ID() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(n.handle), &st); err != nil {
		return 0, fmt.Errorf("%s: %w", n.path, err)
	}
	return st.Ino, nil
}

// IsOwn reports whether this is the process's own namespace, the node's as a rule.
func (n *Namespace) IsOwn() (bool, error) {
	var own, this unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return false, fmt.Errorf("look for this process's network namespace: %w", err)
	}
	if err := unix.Fstat(int(n.handle), &this); err != nil {
		return false, fmt.Errorf("%s: %w", n.path, err)
	}
	return own.Dev == this.Dev && own.Ino == this.Ino, nil
}

// Do is Run with a netlink handle that belongs to the namespace.
func (n *Namespace) Do(f func(*netlink.Handle) error) error {
	return n.Run(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink in %s: %w", n.path, err)
		}
		defer h.Close()
		return f(h)
	})
}

// Run runs f inside the namespace, on a thread of its own that ends with it, so no other
// goroutine ever finds itself in the pod. What f starts in goroutines runs outside.
func (n *Namespace) Run(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread dies with the goroutine
		done <- func() error {
			if err := netns.Set(n.handle); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", n.path, err)
			}
			return f()
		}()
	}()
	return <-done
}
