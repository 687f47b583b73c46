package netif

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/control/api"
	"vswitch/internal/fdpass"
	"vswitch/tap"
)

// sendTimeout bounds the passing of queues to the daemon, which only records them.
const sendTimeout = 15 * time.Second

// SendQueues passes the queues of a TAP to the daemon, which has them open from
// then on.
func SendQueues(socket, token string, dev *tap.Device) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	m := fdpass.Message{Token: token, Features: uint32(dev.Features)}
	return fdpass.Send(ctx, api.FDSocket(socket), m, dev.FDs)
}

// Reattach opens the queues of an attachment that a daemon has lost, inside its
// namespace, and passes them on. It waits until the interface carries again.
func Reattach(socket string, a *api.Attachment) error {
	ns, err := OpenNamespace(a.Netns)
	if err != nil {
		return fmt.Errorf("%s: %w", a.Netns, err)
	}
	defer ns.Close()
	var dev *tap.Device
	err = ns.Do(func(h *netlink.Handle) error {
		// The path may lead to another pod by now.
		link, err := h.LinkByName(a.Key.Ifname)
		if err != nil {
			return err
		}
		if have := link.Attrs().HardwareAddr.String(); have != a.MAC {
			return fmt.Errorf("another interface: its MAC is %s, want %s", have, a.MAC)
		}
		dev, err = tap.Attach(tap.Config{
			Name:   a.Key.Ifname,
			Queues: int(a.Queues),
			Plain:  a.Plain,
		})
		return err
	})
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := SendQueues(socket, a.Token, dev); err != nil {
		return err
	}
	return ns.Do(func(h *netlink.Handle) error { return waitRunning(h, a.Key.Ifname) })
}

// runningTimeout is how long the kernel may take to notice that an interface has
// a carrier again. It looks at most once a second (net/core/link_watch.c), and
// drops what the pod sends until then.
const runningTimeout = 3 * time.Second

func waitRunning(h *netlink.Handle, ifname string) error {
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		link, err := h.LinkByName(ifname)
		if err != nil {
			return err
		}
		if link.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
			return nil
		}
		if time.Since(start) > runningTimeout {
			return fmt.Errorf("no carrier after %v", runningTimeout)
		}
	}
}
