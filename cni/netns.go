package cni

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errNoNetns: a path leads to no network namespace. Namespaces that were mounted
// under /run leave an ordinary file there when the mount is gone.
var errNoNetns = errors.New("not a network namespace")

// podNetns is an open network namespace, which stays as long as it is open.
type podNetns struct {
	path   string
	handle netns.NsHandle
}

// openNetns opens the namespace at path; errors.Is errNoNetns if there is none.
// The caller closes it.
func openNetns(path string) (*podNetns, error) {
	h, err := netns.GetFromPath(path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("%w: %w", errNoNetns, err)
	case err != nil:
		return nil, err
	}
	// NS_GET_NSTYPE (ioctl_ns(2)) fails on anything but a namespace.
	kind, err := unix.IoctlRetInt(int(h), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		h.Close()
		return nil, errNoNetns
	}
	return &podNetns{path: path, handle: h}, nil
}

// errOwnNetns: a path leads to the namespace the plugin runs in.
var errOwnNetns = errors.New("the plugin's own namespace")

// openPodNetns opens CNI_NETNS to change something in it. It refuses the
// plugin's own, which is the node's, unless CNI_NETNS_OVERRIDE says that this is
// meant.
func openPodNetns(args *skel.CmdArgs) (*podNetns, error) {
	ns, err := openNetns(args.Netns)
	if err != nil {
		return nil, err
	}
	own, err := ns.isOwn()
	if err == nil && own && args.NetnsOverride != "1" && !strings.EqualFold(args.NetnsOverride, "true") {
		err = errOwnNetns
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

func (n *podNetns) Close() { n.handle.Close() }

// isOwn reports whether this is the plugin's own namespace, the node's as a rule.
func (n *podNetns) isOwn() (bool, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return false, err
	}
	defer own.Close()
	return own.Equal(n.handle), nil
}

// do runs f inside the namespace, with a netlink handle that belongs to it. f
// runs on a thread of its own that ends with it, so no other goroutine ever
// finds itself in the pod. What f starts in goroutines runs outside.
func (n *podNetns) do(f func(*netlink.Handle) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread dies with the goroutine
		done <- func() error {
			if err := netns.Set(n.handle); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", n.path, err)
			}
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("netlink in %s: %w", n.path, err)
			}
			defer h.Close()
			return f(h)
		}()
	}()
	return <-done
}
