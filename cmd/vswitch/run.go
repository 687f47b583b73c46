package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"vswitch/control/embedded"
	"vswitch/internal/config"
	"vswitch/internal/node"
)

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run this node's daemon",
		Long: `Run this node's daemon until SIGTERM or SIGINT.

Every setting has a default, and can be given as a flag, in the environment
(VSWITCH_UDP_PORT for --udp-port) and in the YAML file that --config names
(udp-port: 8472); the first of these that says something counts.

When the node forwards and takes pods, one line on standard output that begins
with "vswitch: ready" says so. Logs go to standard error. Traffic between nodes
is not encrypted.`,
		Args: cobra.NoArgs,
	}
	loader := config.NewLoader(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loader.Load(os.LookupEnv)
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		return node.Run(cmd.Context(), cfg, node.Options{Version: version, Ready: cmd.OutOrStdout(), Log: log})
	}
	return cmd
}

// newStore is the process that `vswitch run` starts for --store embedded.
func newStore() *cobra.Command {
	var c embedded.Config
	cmd := &cobra.Command{
		Use:    "store",
		Short:  "Run the embedded store (vswitch run does this)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return embedded.Serve(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
	c.AddFlags(cmd.Flags())
	return cmd
}
