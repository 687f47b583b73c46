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
	var keep bool
	var binDir string
	c := &cobra.Command{
		Use:           "vswitch-demo",
		Short:         "Two vswitch nodes and every kind of traffic, in network namespaces",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd, keep, binDir) },
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the network up afterwards, until interrupted")
	c.Flags().StringVar(&binDir, "bin", "", "`directory` of vswitch and vswitch-cni (default: this program's)")
	for _, sub := range traffic.Commands() {
		sub.Hidden = true // the two sides of the demo's own traffic
		c.AddCommand(sub)
	}
	return c
}

func run(cmd *cobra.Command, keep bool, binDir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if binDir == "" {
		binDir = filepath.Dir(self)
	}
	if !lab.Privileged() || lab.InUserNamespace() {
		code, second, err := lab.EnterUserNamespace()
		if err != nil {
			return err
		}
		if !second {
			os.Exit(code)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := demo.Run(ctx, demo.Config{BinDir: binDir, Self: self, Keep: keep, Out: cmd.OutOrStdout()})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\ndemo: %d passed, %d failed\n", r.Passed, r.Failed)
	if r.Failed > 0 || r.Passed == 0 {
		return errRows
	}
	return nil
}
