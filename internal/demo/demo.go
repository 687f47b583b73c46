// Package demo is what `make demo` does: two nodes, pods made by the real
// plugin, and every kind of traffic between ordinary processes on kernel
// sockets, each measured.
//
// It makes the network with internal/lab and the traffic with internal/traffic,
// and drives vswitch only through its binaries.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/userns"
)

// timeout bounds everything but the waiting that Keep asks for.
const timeout = 60 * time.Second

// Config of a demo.
type Config struct {
	// BinDir holds vswitch, vswitch-cni and, as Self, this program.
	BinDir string
	// Self is a program with internal/traffic's commands.
	Self string
	// Keep leaves the network up after the traffic until ctx ends.
	Keep bool
	Out  io.Writer
}

// Result counts rows.
type Result struct{ Passed, Failed int }

// Run builds the network, sends the traffic, prints a row for each, and removes
// everything again. The error is for what keeps the rows from being measured; a
// row that fails is counted in the Result.
func Run(ctx context.Context, cfg Config) (Result, error) {
	fmt.Fprintln(cfg.Out, "Building two nodes, an underlay and a machine outside")
	return run(ctx, cfg, build)
}

// check finds out early what would stop a demo.
func (cfg *Config) check() error {
	for _, name := range []string{"vswitch", "vswitch-cni"} {
		if _, err := os.Stat(filepath.Join(cfg.BinDir, name)); err != nil {
			return fmt.Errorf("demo: %w: run `make build` first", err)
		}
	}
	return userns.CheckTun()
}

func (cfg *Config) newLab() (*lab.Lab, error) {
	step := func(format string, args ...any) { fmt.Fprintf(cfg.Out, "  "+format+"\n", args...) }
	return lab.New(lab.Config{BinDir: cfg.BinDir, Logf: step})
}

// run sends the traffic of a network in a lab of its own.
func run(ctx context.Context, cfg Config, build func(context.Context, *lab.Lab, string) (*network, error)) (r Result, err error) {
	if err := cfg.check(); err != nil {
		return r, err
	}
	l, err := cfg.newLab()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	working, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the demo took longer than %v", timeout))
	defer cancel()
	n, err := build(working, l, cfg.Self)
	if err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w\n%s", err, l.Failures(20))
		}
		return r, err
	}
	fmt.Fprintln(cfg.Out, "\nTraffic; latency is the median round trip of 64 bytes, throughput is what arrived, one stream")
	r = n.send(working, cfg.Out)
	if err := ctx.Err(); err != nil {
		return r, errors.New("demo: interrupted")
	}
	if r.Failed > 0 {
		fmt.Fprintf(cfg.Out, "\nWhat the processes said last:\n%s", l.Failures(15))
	}
	if cfg.Keep {
		n.explain(cfg.Out)
		<-ctx.Done()
	}
	return r, nil
}

// explain says how to use the network while it is kept.
func (n *network) explain(w io.Writer) {
	enter := func(s *lab.Namespace) string {
		if lab.InUserNamespace() {
			return fmt.Sprintf("nsenter -t %d -U -m --preserve-credentials nsenter --net=%s bash", os.Getpid(), s.Path)
		}
		return fmt.Sprintf("nsenter --net=%s bash", s.Path)
	}
	who := "as root"
	if lab.InUserNamespace() {
		who = "as the user you are"
	}
	fmt.Fprintf(w, "\nThe network stays up. To enter a pod, a node, or the machine outside, %s:\n", who)
	for _, p := range n.pods() {
		fmt.Fprintf(w, "  %-8s %-16s %-24s %s\n", p.Spec.Name, p.IPv4, p.IPv6, enter(p.Namespace))
	}
	for _, m := range []struct {
		name      string
		addrs     dual
		namespace *lab.Namespace
	}{
		{"a", dual{n.a.Underlay4, n.a.Underlay6}, n.a.Namespace}, {"b", dual{n.b.Underlay4, n.b.Underlay6}, n.b.Namespace},
		{"outside", n.stranger, n.outside},
	} {
		if m.namespace.IsHere() {
			continue // where the reader is
		}
		fmt.Fprintf(w, "  %-8s %-16s %-24s %s\n", m.name, m.addrs.v4, m.addrs.v6, enter(m.namespace))
	}
	fmt.Fprintf(w, "\nTo ask a node:\n")
	for _, m := range []*lab.Node{n.a, n.b} {
		fmt.Fprintf(w, "  %s/vswitch get pods --socket %s\n", filepath.Dir(n.self), m.Socket())
	}
	fmt.Fprintf(w, "\nIn each pod `web-...` a server answers on port %d, behind the service at %s and %s, port %d, and outside at %s, port %d; pods find it as web.default.svc.cluster.local.\nPress ^C to remove it all.\n",
		serverPort, service4, service6, servicePort, n.door, n.nodePort)
}

// table writes aligned columns as they come.
func table(w io.Writer, columns ...string) {
	widths := []int{5, 26, 7, 9, 11, 13}
	var b strings.Builder
	for i, c := range columns {
		if i < len(widths) {
			fmt.Fprintf(&b, "%-*s ", widths[i], c)
		} else {
			b.WriteString(c)
		}
	}
	fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
}
