package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/config"
)

const (
	// upgradeTimeout is for the new process to start and the old one to drain and end.
	upgradeTimeout = config.MaxDrain + 30*time.Second
	upgradePoll    = 20 * time.Millisecond
)

func newUpgrade() *cobra.Command {
	var d daemon
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Have the daemon go on in a new process of the program in its place",
		Long: `Have the daemon go on in a new process of the program that lies in its place,
another version perhaps, and wait until it does. Pods keep their interfaces,
connections between pods and to services go on; connections from and to the
outside end. If the new program refuses to start, the old process goes on, and
the reason is this command's error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), upgradeTimeout,
				fmt.Errorf("no new process within %v: the daemon's log says why", upgradeTimeout))
			defer cancel()
			var before uint32
			err := d.call(ctx, func(c *apiv1.Client) error {
				r, err := c.Upgrade(ctx, &apiv1.UpgradeRequest{})
				before = r.GetPid()
				return err
			})
			if err != nil {
				return err
			}
			for {
				var v *apiv1.VersionReply
				err := d.call(ctx, func(c *apiv1.Client) (err error) {
					v, err = c.Version(ctx, &apiv1.VersionRequest{})
					return err
				})
				switch {
				case err != nil: // between two processes nobody answers
				case v.GetUpgradeRefused() != "":
					return fmt.Errorf("the daemon goes on as it was, since the new program refused: %s", v.GetUpgradeRefused())
				case v.GetPid() != before:
					fmt.Fprintf(cmd.OutOrStdout(), "daemon %s, pid %d, in the place of pid %d\n", v.GetVersion(), v.GetPid(), before)
					return nil
				}
				select {
				case <-time.After(upgradePoll): // between two looks
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		},
	}
	d.addFlag(cmd)
	return cmd
}
