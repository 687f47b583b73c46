package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vswitch/control/embedded"
	"vswitch/internal/bound"
	"vswitch/internal/config"
	"vswitch/internal/keeper"
	"vswitch/internal/node"
	"vswitch/internal/sdnotify"
	"vswitch/tunnel/udp"
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
		parent, err := keeper.Connect()
		if err != nil {
			return err
		}
		if parent != nil {
			defer parent.Close()
		}
		cfg, err := loader.Load(os.LookupEnv)
		if err != nil {
			return parent.Refuse(err)
		}
		log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		if parent == nil {
			return keep(cmd.Context(), cfg, log)
		}
		return parent.Refuse(runNode(cmd.Context(), cfg, parent, node.Options{Version: version, Ready: cmd.OutOrStdout(), Log: log}))
	}
	// A keeper started by an older version gives this one that one's flags.
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, bad error) error {
		bad = flagError(cmd, bad)
		parent, err := keeper.Connect()
		if err != nil || parent == nil {
			return bad
		}
		defer parent.Close()
		return parent.Refuse(bad)
	})
	return cmd
}

// keep runs this command again as a child, which does the work and may end and be
// started again, while this process holds what must not end with it.
func keep(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	program, err := os.Executable() // its path, at which an upgrade puts another
	if err != nil {
		return err
	}
	socket, err := node.KeeperSocket(cfg)
	if err != nil {
		return err
	}
	manager, err := sdnotify.Open()
	if err != nil {
		return err
	}
	// More than a start needs: another underlay address, or more workers, may come.
	stock := bound.NewStock(2*cfg.Workers, udp.DefaultBufferBytes)
	score, err := keeper.OpenScore()
	if err != nil {
		log.Warn(err.Error())
	}
	if err := confineKeeper(&cfg, program, log); err != nil {
		return err
	}
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGHUP)
	defer signal.Stop(restart)
	kc := keeper.Config{
		Command: func() []string { return append([]string{program}, os.Args[1:]...) },
		Restart: restart, Stock: stock, Embedded: embeddedStore(&cfg, log), Socket: socket, TakeOver: cfg.TakeOver, Drain: cfg.DrainTimeout, Manager: manager, Score: score, Log: log,
	}
	if manager.KeepsDescriptors() {
		if kc.Store, err = manager.NewStore(log); err != nil {
			return err
		}
	}
	alive, stop := context.WithCancel(context.Background()) // to the end, which takes its time
	defer stop()
	go manager.KeepAlive(alive)
	return keeper.Run(ctx, kc)
}

// runNode is the child: the dataplane and all that drives it.
func runNode(ctx context.Context, cfg config.Config, parent *keeper.Client, opt node.Options) error {
	signal.Ignore(syscall.SIGHUP) // the keeper's
	handOver, stop := signal.NotifyContext(context.Background(), keeper.HandOver)
	defer stop()
	opt.Keeper, opt.HandOver = parent, handOver
	if err := confineDataplane(&cfg); err != nil {
		return err
	}
	return node.Run(ctx, cfg, opt)
}

// embeddedStore starts the store of this configuration; nil: it has none.
func embeddedStore(cfg *config.Config, log *slog.Logger) func() (keeper.Embedded, error) {
	c := node.EmbeddedStore(cfg)
	if c == nil {
		return nil
	}
	return func() (keeper.Embedded, error) {
		return embedded.Start(embedded.SupervisorConfig{Store: *c, Log: log})
	}
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
			if err := confineStore(&c); err != nil {
				return err
			}
			return embedded.Serve(cmd.Context(), c, cmd.ErrOrStderr())
		},
	}
	c.AddFlags(cmd.Flags())
	return cmd
}
