package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"vswitch/internal/attend"
	"vswitch/internal/hostnet"
)

func newAttend() *cobra.Command {
	o := &cniOptions{}
	var once, noHost bool
	var netns string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "attend",
		Short: "Do for a daemon without privilege what needs it: plugin, host's network, pods' queues",
		Long: `Do for this node's daemon what it has no privilege for: install the CNI plugin and
its configuration once pods can be added (install-cni), attach the host's own network
(host attach), and pass a daemon that was started anew the queues of the pods there are
(vswitch-cni reattach). What is undone later is done again within seconds, until SIGTERM.

It forwards nothing and listens nowhere; ending it undoes nothing. It needs CAP_NET_ADMIN
and CAP_SYS_ADMIN in the namespaces of the pods and of the host, and the API's socket.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			install, err := o.config()
			if err != nil {
				return err
			}
			if err := install.Validate(); err != nil {
				return err
			}
			c := attend.Config{Socket: install.Socket, Install: &install, Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))}
			if !noHost {
				c.Host = &hostnet.Config{Socket: install.Socket, Netns: netns}
			}
			if !once {
				attend.Run(cmd.Context(), c)
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			if err := attend.Once(ctx, c); err != nil {
				return fmt.Errorf("not done within %v: %w", wait, plain(err))
			}
			return nil
		},
	}
	o.addInstallFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&netns, "netns", "", "`PATH` of the host's network namespace; the machine's own if not given")
	f.BoolVar(&noHost, "no-host", false, "leave the host's own network unattached")
	f.BoolVar(&once, "once", false, "end when all is done")
	f.DurationVar(&wait, "wait", time.Minute, "how long --once tries")
	return cmd
}
