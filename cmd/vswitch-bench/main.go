// Command vswitch-bench measures pod networks against each other on one machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vswitch/bench"
	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "vswitch-bench:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:           "vswitch-bench",
		Short:         "Compare pod networks on this machine",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.AddCommand(runCommand(), listCommand(), compareCommand(), plotCommand(), reportCommand())
	c.AddCommand(traffic.Commands()...)
	return c
}

// selection is which scenarios to take, for run and list.
type selection struct{ file, only string }

func (s *selection) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.file, "file", "", "scenario `file` in YAML instead of the built-in one")
	c.Flags().StringVar(&s.only, "only", "", "regular `expression` for the names of the scenarios to take")
}

func (s *selection) scenarios() ([]bench.Scenario, error) {
	scenarios, err := bench.Defaults()
	if s.file != "" {
		var b []byte
		if b, err = os.ReadFile(s.file); err == nil {
			scenarios, err = bench.Parse(b)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case s.only != "":
		return bench.Only(scenarios, s.only)
	}
	return bench.Usual(scenarios), nil
}

func listCommand() *cobra.Command {
	var s selection
	c := &cobra.Command{
		Use: "list", Short: "List the scenarios", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			scenarios, err := s.scenarios()
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range scenarios {
				fmt.Fprintf(t, "%s\t%s against %s\t%s\n", s.Name, s.Subject, s.Baseline, time.Duration(s.Duration))
			}
			return t.Flush()
		},
	}
	s.flags(c)
	return c
}

func runCommand() *cobra.Command {
	var s selection
	var o bench.Options
	var jsonFile string
	c := &cobra.Command{
		Use: "run", Short: "Measure the scenarios and print a table", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Pairs < 1 {
				return fmt.Errorf("--pairs %d: at least 1", o.Pairs)
			}
			scenarios, err := s.scenarios()
			if err != nil {
				return err
			}
			return run(cmd, scenarios, o, bench.Settings{Pairs: o.Pairs, Duration: bench.Duration(o.Duration), Nodes: o.Nodes, Only: s.only, File: s.file}, jsonFile)
		},
	}
	s.flags(c)
	f := c.Flags()
	f.IntVar(&o.Pairs, "pairs", 5, "measurements of each side")
	f.DurationVar(&o.Duration, "duration", 0, "length of each measurement (default: the scenario's)")
	f.IntVar(&o.Nodes, "nodes", 0, "nodes of large clusters, all else in proportion (default: the scenario's)")
	f.StringVar(&o.BinDir, "bin", "", "`directory` of vswitch and vswitch-cni (default: this program's)")
	f.StringVar(&jsonFile, "json", "", "`file` for the result in JSON")
	return c
}

func run(cmd *cobra.Command, scenarios []bench.Scenario, o bench.Options, settings bench.Settings, jsonFile string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o.Self, o.Progress = self, cmd.ErrOrStderr()
	if o.BinDir == "" {
		o.BinDir = filepath.Dir(self)
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
	result := bench.Result{Machine: bench.Describe(ctx, version), Settings: settings}
	var interrupted error // what was measured until then is kept
	if result.Rows, interrupted = bench.Run(ctx, scenarios, o); interrupted != nil && len(result.Rows) == 0 {
		return interrupted
	}
	if err := result.WriteTable(cmd.OutOrStdout()); err != nil {
		return err
	}
	if jsonFile != "" {
		if err := writeJSON(jsonFile, &result); err != nil {
			return err
		}
	}
	if interrupted != nil {
		return fmt.Errorf("ended early, after %d rows: %w", len(result.Rows), interrupted)
	}
	if n := result.Failed(); n > 0 {
		return fmt.Errorf("%d of %d rows failed", n, len(result.Rows))
	}
	return nil
}

func writeJSON(name string, result *bench.Result) error {
	b, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, append(b, '\n'), 0o644))
}
