package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vswitch/bench"
)

func readResult(name string) (*bench.Result, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := &bench.Result{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(r.Rows) == 0 {
		return nil, fmt.Errorf("%s holds no rows: want what `vswitch-bench run --json` wrote", name)
	}
	return r, nil
}

func compareCommand() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use: "compare A.json B.json", Short: "Tell what changed from one run to another, beyond the spread", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := readResult(args[0])
			if err != nil {
				return err
			}
			b, err := readResult(args[1])
			if err != nil {
				return err
			}
			worse, err := bench.WriteComparison(cmd.OutOrStdout(), a, b)
			if err == nil && strict && worse > 0 {
				err = fmt.Errorf("%d rows are worse or fail now", worse)
			}
			return err
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail if a row is worse, or fails now")
	return c
}

func plotCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "plot FILE.json", Short: "Draw a run's ratios and latencies as SVG", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readResult(args[0])
			if err != nil {
				return err
			}
			return writePlots(cmd, r.Plots(), dir)
		},
	}
	c.Flags().StringVarP(&dir, "output", "o", ".", "`directory` for the drawings")
	return c
}

func writePlots(cmd *cobra.Command, plots []bench.Plot, dir string) error {
	err := os.MkdirAll(dir, 0o755)
	for _, p := range plots {
		name := filepath.Join(dir, p.Name+".svg")
		err = errors.Join(err, os.WriteFile(name, p.SVG, 0o644))
		fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return err
}

func reportCommand() *cobra.Command {
	var document string
	c := &cobra.Command{
		Use: "report FILE.json", Short: "Put a run's table and plots into a Markdown document", Args: cobra.ExactArgs(1),
		Long: "Put a run's table into a Markdown document, between the two marks it has for it,\n" +
			"and its plots into a directory beside it, named as the document is.",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readResult(args[0])
			if err != nil {
				return err
			}
			old, err := os.ReadFile(document)
			if err != nil {
				return err
			}
			ext := filepath.Ext(document)
			dir := document[:len(document)-len(ext)]
			plots := r.Plots()
			text, err := r.Report(old, plots, filepath.Base(dir))
			if err != nil {
				return fmt.Errorf("%s: %w", document, err)
			}
			return errors.Join(writePlots(cmd, plots, dir), os.WriteFile(document, text, 0o644))
		},
	}
	c.Flags().StringVar(&document, "document", "docs/benchmarks.md", "the `file` to write into")
	return c
}
