package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newReady() *cobra.Command {
	var d daemon
	var own bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Succeed if the daemon takes pods",
		Long: `Succeed if a pod that is added now would be connected, and else say why it would not.

With --own it must be a daemon that runs in the same container: the socket may lead to
that of another, which this one is about to replace.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.waitReady(cmd.Context(), wait); err != nil || !own {
				return err
			}
			return d.isOwn(cmd.Context())
		},
	}
	d.addFlag(cmd)
	cmd.Flags().BoolVar(&own, "own", false, "only a daemon in the same PID namespace counts")
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long it may take to be ready, such as 2m (default: it must be)")
	return cmd
}

// isOwn fails if who listens on the socket is not in this process's PID namespace: the
// kernel translates the number of the process that listens, and has none for one that
// can't be seen (unix(7), SO_PEERCRED; pid_namespaces(7)).
func (d *daemon) isOwn(ctx context.Context) error {
	socket, err := d.path()
	if err != nil {
		return err
	}
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Pid == 0 {
		return errors.New("the daemon that takes pods is another container's")
	}
	return nil
}
