package cni

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"vswitch/control/api"
	"vswitch/internal/netif"
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
	fallback, noDefault := api.DefaultSocket()
	socket := flags.String("socket", fallback, "the daemon's socket")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "vswitch-cni reattach: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if *socket == "" && noDefault != nil {
		fmt.Fprintf(stderr, "vswitch-cni reattach: --socket: %v; want --socket PATH\n", noDefault)
		return 2
	}
	reply, err := call(*socket, api.Client.ListAttachments, &api.ListAttachmentsRequest{DetachedOnly: true})
	if err != nil {
		fmt.Fprintf(stderr, "vswitch-cni reattach: %v\n", err)
		return 1
	}
	failed := 0
	for _, a := range reply.Attachments {
		name := a.Pod.Namespace + "/" + a.Pod.Name + " " + keyText(a.Key)
		if err := netif.Reattach(*socket, &a); err != nil {
			failed++
			fmt.Fprintf(stdout, "%s: failed: %v\n", name, err)
			continue
		}
		fmt.Fprintf(stdout, "%s: reattached\n", name)
	}
	if failed > 0 {
		fmt.Fprintf(stderr, "vswitch-cni reattach: %d of %d failed\n", failed, len(reply.Attachments))
		return 1
	}
	return 0
}
