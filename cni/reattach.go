package cni

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	apiv1 "vswitch/control/api/v1"
	"vswitch/tap"
)

// reattach opens the queues of pods whose daemon was restarted and lost them, and
// passes them on as ADD does. The TAPs were kept, with addresses and routes, by
// being persistent; a queue can only be opened from inside the pod's namespace,
// where the daemon never goes. Whoever may enter it runs this: an init container,
// systemd, the holder of a user namespace. It returns the exit code: 1 if any
// attachment failed.
func reattach(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("vswitch-cni reattach", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("socket", apiv1.DefaultSocket(), "the daemon's socket")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "vswitch-cni reattach: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	reply, err := call(*socket, apiv1.NodeClient.ListAttachments, &apiv1.ListAttachmentsRequest{DetachedOnly: true})
	if err != nil {
		fmt.Fprintf(stderr, "vswitch-cni reattach: %s\n", message(err))
		return 1
	}
	failed := 0
	for _, a := range reply.GetAttachments() {
		name := a.GetPod().GetNamespace() + "/" + a.GetPod().GetName() + " " + keyText(a.GetKey())
		if err := reattachOne(*socket, a); err != nil {
			failed++
			fmt.Fprintf(stdout, "%s: failed: %v\n", name, err)
			continue
		}
		fmt.Fprintf(stdout, "%s: reattached\n", name)
	}
	if failed > 0 {
		fmt.Fprintf(stderr, "vswitch-cni reattach: %d of %d failed\n", failed, len(reply.GetAttachments()))
		return 1
	}
	return 0
}

func reattachOne(socket string, a *apiv1.Attachment) error {
	ns, err := openNetns(a.GetNetns())
	if err != nil {
		return fmt.Errorf("%s: %w", a.GetNetns(), err)
	}
	defer ns.Close()
	var dev *tap.Device
	err = ns.do(func(h *netlink.Handle) error {
		// The path may lead to another pod by now.
		link, err := h.LinkByName(a.GetKey().GetIfname())
		if err != nil {
			return err
		}
		if have := link.Attrs().HardwareAddr.String(); have != a.GetMac() {
			return fmt.Errorf("another interface: its MAC is %s, want %s", have, a.GetMac())
		}
		dev, err = tap.Attach(tap.Config{
			Name:   a.GetKey().GetIfname(),
			Queues: int(a.GetQueues()),
			Plain:  a.GetPlain(),
		})
		return err
	})
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := sendQueues(socket, a.GetToken(), dev); err != nil {
		return err
	}
	return ns.do(func(h *netlink.Handle) error { return waitRunning(h, a.GetKey().GetIfname()) })
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
