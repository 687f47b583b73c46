// Command vswitch is a node's daemon, and the command line that talks to it.
//
//	vswitch run          the daemon; package internal/node is what it runs
//	vswitch upgrade      asks the daemon to go on in a new process
//	vswitch store        the embedded store; the daemon starts it
//	vswitch host         the host's own interface; package internal/hostnet
//	vswitch install-cni  the plugin, for a container runtime; package internal/cniinstall
//	vswitch rootless     a command with a network of its own; package internal/rootless
//	vswitch apply|delete|get|capture|trace|version   clients of the daemon's API
//
// It holds no logic of its own: flags in, calls out, text back.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vswitch/internal/keeper"
	"vswitch/internal/rootless"
)

// version is set by the linker (Makefile).
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := newRoot()
	if args, ok := calledAsSlirp(os.Args); ok {
		root.SetArgs(args)
	}
	if err := root.ExecuteContext(ctx); err != nil {
		stop()
		var ended *keeper.ExitError
		if errors.As(err, &ended) { // it has said why
			os.Exit(max(ended.Code, 1))
		}
		var exit *rootless.ExitError
		if errors.As(err, &exit) {
			if exit.Text != "" {
				fmt.Fprintln(os.Stderr, "vswitch:", exit.Text)
			}
			os.Exit(exit.Code)
		}
		fmt.Fprintln(os.Stderr, "vswitch:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "vswitch",
		Short:         "A pod network in user space: one process a node, no kernel module, no iptables",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newRun(), newStore(), newApply(), newDelete(), newGet(), newCapture(), newTrace(), newHost(), newUpgrade(),
		newReady(), newInstallCNI(), newUninstallCNI(), newAttend(), newRootless(), newVersion())
	return root
}
