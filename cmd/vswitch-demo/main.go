// Command vswitch-demo shows what vswitch does, on this machine, in namespaces
// of its own: two nodes, pods, and every kind of traffic, measured.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"vswitch/internal/demo"
	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

func main() {
	err := command().Execute()
	if err == nil {
		return
	}
	if err != errRows { // which the demo's last line has said
		fmt.Fprintln(os.Stderr, "vswitch-demo:", err)
	}
	os.Exit(1)
}

// errRows: the demo ran, and not every row passed.
var errRows = errors.New("not every row passed")

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "vswitch-demo",
		Short:         "Two vswitch nodes and every kind of traffic, in network namespaces",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd, o) },
	}
	c.Flags().BoolVar(&o.keep, "keep", false, "leave the network up afterwards, until interrupted")
	c.Flags().BoolVar(&o.rootless, "rootless", false, "run the nodes as an ordinary user without capabilities in this machine's own network")
	c.Flags().StringVar(&o.binDir, "bin", "", "`directory` of vswitch and vswitch-cni (default: this program's)")
	for _, sub := range traffic.Commands() {
		sub.Hidden = true // the two sides of the demo's own traffic
		c.AddCommand(sub)
	}
	return c
}

type options struct {
	keep, rootless bool
	binDir         string
}

func run(cmd *cobra.Command, o options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := demo.Config{BinDir: o.binDir, Self: self, Keep: o.keep, Out: cmd.OutOrStdout()}
	if cfg.BinDir == "" {
		cfg.BinDir = filepath.Dir(self)
	}
	if o.rootless {
		return runRootless(cmd, cfg)
	}
	if !lab.Privileged() || lab.InUserNamespace() {
		code, second, err := lab.EnterUserNamespace(lab.NewNetwork)
		if err != nil {
			return err
		}
		if !second {
			os.Exit(code)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := demo.Run(ctx, cfg)
	if err != nil {
		return err
	}
	return judge(cmd, r)
}

// judge prints the last line.
func judge(cmd *cobra.Command, r demo.Result) error {
	fmt.Fprintf(cmd.OutOrStdout(), "\ndemo: %d passed, %d failed\n", r.Passed, r.Failed)
	if r.Failed > 0 || r.Passed == 0 {
		return errRows
	}
	return nil
}

func runRootless(cmd *cobra.Command, cfg demo.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, code, first, err := demo.RunRootless(ctx, cfg)
	switch {
	case err != nil:
		return err
	case !first:
		return judge(cmd, r)
	case code != 0:
		return errRows // the second run has said what
	}
	return nil
}
