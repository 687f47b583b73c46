package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/account"
	"vswitch/internal/cniinstall"
)

// cniOptions are the flags of the commands that install or remove the plugin.
type cniOptions struct {
	daemon
	cniinstall.Config
}

func (o *cniOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	binDir, confDir := account.Own().CNIDirs()
	f.StringVar(&o.BinDir, "bin-dir", binDir, "`DIR` in which the container runtime looks for plugins")
	f.StringVar(&o.ConfDir, "conf-dir", confDir, "`DIR` in which it looks for network configurations")
	f.StringVar(&o.File, "conf-file", cniinstall.DefaultFile, "`NAME` of the configuration's file: runtimes take the first by name")
}

// addInstallFlags are those that only installing needs.
func (o *cniOptions) addInstallFlags(cmd *cobra.Command) {
	o.addFlags(cmd)
	o.daemon.addFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Network, "network", cniinstall.DefaultNetwork, "`NAME` of the network")
	f.BoolVar(&o.HostPorts, "host-ports", os.Geteuid() == 0, "the daemon opens the ports that containers publish, and not their engine; an ordinary user's podman does so itself")
	f.StringVar(&o.Plugin, "plugin", "", "`FILE` with the plugin (default: vswitch-cni beside this program)")
}

// config is complete once the flags are read.
func (o *cniOptions) config() (cniinstall.Config, error) {
	c := o.Config
	var err error
	if c.Socket, err = o.path(); err != nil {
		return c, err
	}
	if c.Plugin == "" {
		program, err := os.Executable()
		if err != nil {
			return c, err
		}
		c.Plugin = filepath.Join(filepath.Dir(program), "vswitch-cni")
	}
	return c, nil
}

// pollReady is how often a daemon that is not ready is asked again.
const pollReady = 200 * time.Millisecond

// waitReady waits until an ADD would succeed; its error is the daemon's last reason.
func (d *daemon) waitReady(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := d.ready(context.WithoutCancel(ctx))
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pollReady): // between two looks
		case <-ctx.Done():
			return err
		}
	}
}

// statusTimeout bounds a question that the daemon answers from memory.
const statusTimeout = 5 * time.Second

// ready asks the daemon whether an ADD would succeed.
func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return d.call(ctx, func(c *apiv1.Client) error {
		s, err := c.Status(ctx, &apiv1.StatusRequest{})
		if err == nil && !s.GetReady() {
			return errors.New("the daemon takes no pods: " + s.GetReason())
		}
		return err
	})
}

func newInstallCNI() *cobra.Command {
	o := &cniOptions{}
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "install-cni",
		Short: "Install the CNI plugin and its configuration for this host's container runtime",
		Long: `Install the CNI plugin and, last, the network configuration by which a container
runtime finds it. Both appear as a whole or not at all, and only when the daemon takes
pods: a kubelet calls its node ready once the configuration is there. What is there
already and right is left alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return err
			}
			if err := o.waitReady(cmd.Context(), wait); err != nil {
				return fmt.Errorf("nothing installed: %w", err)
			}
			r, err := cniinstall.Install(c)
			for _, path := range r.Changed {
				fmt.Fprintf(cmd.OutOrStdout(), "%s installed\n", path)
			}
			if err == nil && r.Changed == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "installed already")
			}
			for _, path := range r.Ahead {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s comes first by name: runtimes take it until it is removed\n", path)
			}
			return err
		},
	}
	o.addInstallFlags(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long the daemon may take to be ready, such as 2m (default: it must be)")
	return cmd
}

func newUninstallCNI() *cobra.Command {
	o := &cniOptions{}
	cmd := &cobra.Command{
		Use:   "uninstall-cni",
		Short: "Remove what install-cni installed",
		Long: `Remove the network configuration and the plugin. New pods then get no network from
vswitch; those there are keep theirs, but can't be deleted properly without the plugin:
remove them first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := cniinstall.Remove(o.Config)
			for _, path := range removed {
				fmt.Fprintf(cmd.OutOrStdout(), "%s removed\n", path)
			}
			return err
		},
	}
	o.addFlags(cmd)
	return cmd
}
