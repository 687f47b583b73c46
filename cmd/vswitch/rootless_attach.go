package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vswitch/internal/rootless"
	"vswitch/internal/rootless/inside"
	"vswitch/internal/rootless/slirp"
)

// slirpProgram is the name under which this program, or a link to it, takes
// slirp4netns's command line.
const slirpProgram = "slirp4netns"

// calledAsSlirp is the command line for a program that was called by that name.
func calledAsSlirp(args []string) ([]string, bool) {
	if !strings.HasSuffix(filepath.Base(args[0]), slirpProgram) {
		return nil, false
	}
	return append([]string{"rootless", "attach"}, args[1:]...), true
}

func newRootlessAttach() *cobra.Command {
	var o slirp.Options
	showVersion := false
	cmd := &cobra.Command{
		Use:   "attach [flags] PID|PATH INTERFACE",
		Short: "Give a namespace of somebody else's a network, as slirp4netns does",
		Long: `Give a network namespace that somebody else made a network, with the command line
and the API socket of slirp4netns(1), so that what drives slirp4netns drives vswitch:

    rootlesskit --net=slirp4netns --slirp4netns-binary=PATH ...
    podman run --network slirp4netns ...        with network_cmd_path in containers.conf(5)

PATH is a link to this program whose name ends in "slirp4netns". It lasts until it
is told to end, or something happens on the descriptor --exit-fd.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if showVersion {
				fmt.Fprintf(cmd.OutOrStdout(), "%s version 1.2.0 (vswitch %s)\n", slirpProgram, version)
				return nil
			}
			if err := o.Complete(args); err != nil {
				return err
			}
			return attach(&o)
		},
	}
	o.AddFlags(cmd.Flags())
	cmd.Flags().BoolVarP(&showVersion, "version", "v", false, "say which version's command line this is")
	return cmd
}

func attach(o *slirp.Options) error {
	c := rootless.AttachConfig{NetNS: o.NetNS, UserNS: o.UserNS, Bare: !o.Configure, API: o.API, Log: rootlessLog(false)}
	var err error
	if c.Self, err = os.Executable(); err != nil {
		return err
	}
	if c.Dataplane.Plan, err = o.Plan(randomMAC(), min(runtime.NumCPU(), maxRootlessWorkers)); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	if o.ExitFD >= 0 {
		unix.CloseOnExec(o.ExitFD)
		go func() {
			await(o.ExitFD)
			stop()
		}()
	}
	if o.ReadyFD >= 0 {
		unix.CloseOnExec(o.ReadyFD)
		c.Ready = func() {
			unix.Write(o.ReadyFD, []byte("1")) // whoever closed it doesn't wait
			unix.Close(o.ReadyFD)
		}
	}
	return rootless.Attach(ctx, c)
}

// await returns when something happens on a descriptor, be it that it can't be
// waited for.
func await(fd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// newRootlessJoin is the process that makes the interface in another's namespace.
func newRootlessJoin() *cobra.Command {
	return &cobra.Command{
		Use:    "join",
		Short:  "Make the interface in this namespace (vswitch rootless attach does this)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return inside.Join() },
	}
}
