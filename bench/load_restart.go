package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// Steady traffic through a daemon that is restarted: what of it is lost, and how
// long nothing comes.

// events are ways for a daemon to go and come again. Each returns once the daemon
// is back.
var events = map[string]func(context.Context, *network) error{
	// planned: the daemon is asked to go on in a new process.
	"planned": func(ctx context.Context, n *network) error {
		return n.replaced(ctx, func(int) error { return n.node.Daemon().Signal(syscall.SIGHUP) })
	},
	// kill: the dataplane is killed, its keeper is not.
	"kill": func(ctx context.Context, n *network) error {
		return n.replaced(ctx, func(dataplane int) error { return syscall.Kill(dataplane, syscall.SIGKILL) })
	},
	// take-over: another daemon takes the place of this one, as a DaemonSet's new pod does.
	"take-over": func(ctx context.Context, n *network) error { return n.node.ReplaceDaemon(ctx) },
	// kill-all: both are killed; a service manager starts the daemon and has the
	// plugin open the pods' devices again.
	"kill-all": func(ctx context.Context, n *network) error {
		n.node.Daemon().Kill() // and the dataplane with it
		if err := n.node.RestartDaemon(ctx); err != nil {
			return err
		}
		_, err := n.node.Exec(ctx, lab.Command{
			Name: "reattach", Path: filepath.Join(n.binDir, "vswitch-cni"), Args: []string{"reattach", "--socket", n.node.Socket()},
		})
		return err
	},
}

// replaced causes the dataplane to be replaced and waits until another answers.
func (n *network) replaced(ctx context.Context, cause func(dataplane int) error) error {
	before, err := n.node.Dataplane()
	if err != nil {
		return err
	}
	if err := cause(before); err != nil {
		return err
	}
	for {
		if now, err := n.node.Dataplane(); err == nil && now != before {
			if _, err := n.node.Vswitch(ctx, "", "version"); err == nil {
				return nil
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no dataplane in the place of process %d: %w", before, context.Cause(ctx))
		}
	}
}

// calm lies before, between and after events, for traffic to be as it was.
const calm = 300 * time.Millisecond

// eventTime is how long a load's events take, roughly, beside its duration.
func (l *Load) eventTime() time.Duration {
	kind := loadKinds[l.Kind]
	if !kind.times {
		return 0
	}
	each := calm + 200*time.Millisecond
	if !kind.events {
		each = attachment
	}
	return time.Duration(max(l.Times, 1)) * each
}

// aroundTime is how long a load takes beside what it measures, roughly and at most.
func (l *Load) aroundTime() time.Duration {
	if l.Kind == "sync" {
		return 150 * time.Second
	}
	return 0
}

// restart sends steady traffic through a number of events.
func restart(ctx context.Context, l *Load, n *network, _ time.Duration, self string) (measurement, error) {
	if n.node == nil {
		return measurement{}, errors.New("there is no daemon to restart")
	}
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), loadPort).String()
	witness := lab.Command{Name: "witness", Path: self, Args: []string{"witness", "--listen", any}}
	return withServer(ctx, n.endpoints, witness, serveReady, func(p *lab.Process) (measurement, error) {
		client, err := n.client.Start(lab.Command{Name: "steady", Path: self, Args: []string{"load", "steady", "--to", n.target().String()}})
		if err != nil {
			return measurement{}, err
		}
		defer client.Stop()
		began, err := through(ctx, l, n)
		if err != nil {
			return measurement{}, err
		}
		sent, err := steadyReport(client)
		if err != nil {
			return measurement{}, err
		}
		got, err := steadyReport(p)
		if err != nil {
			return measurement{}, err
		}
		return outlasted(began, sent, got)
	})
}

// through makes the events happen and says when each did.
func through(ctx context.Context, l *Load, n *network) (began []time.Time, err error) {
	for range max(l.Times, 1) {
		if err := pause(ctx, calm); err != nil {
			return nil, err
		}
		began = append(began, time.Now())
		if err := events[l.Event](ctx, n); err != nil {
			return nil, err
		}
	}
	return began, pause(ctx, calm)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// steadyReport stops a process of package traffic and reads its report.
func steadyReport(p *lab.Process) (*traffic.Steady, error) {
	if err := p.Stop(); err != nil {
		return nil, err
	}
	r, err := traffic.SteadyIn(p.Log())
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", p.Name, err, p.Tail(5))
	}
	return r, nil
}

// outlasted makes figures of what both ends say. The stall of an event is the
// longest silence that ended between it and the next.
func outlasted(began []time.Time, sent, got *traffic.Steady) (measurement, error) {
	if sent.Connections == 0 || sent.Datagrams == 0 || sent.Bytes == 0 {
		return measurement{}, fmt.Errorf("no steady traffic was sent: %+v", sent)
	}
	stalls := make([]float64, len(began))
	for i, t := range began {
		for _, g := range got.Gaps {
			if g.At.After(t) && (i+1 == len(began) || !g.At.After(began[i+1])) {
				stalls[i] = max(stalls[i], float64(g.Length)/float64(time.Millisecond))
			}
		}
	}
	slices.Sort(stalls)
	broken := max(len(sent.Broken), len(got.Broken))
	return measurement{
		figures: map[string]float64{
			"stall-p99": stalls[(len(stalls)*99+99)/100-1],
			"kept":      100 * float64(sent.Connections-broken) / float64(sent.Connections),
			"delivered": 100 * float64(got.Datagrams) / float64(sent.Datagrams),
		},
		detail: map[string]any{"stallsMs": stalls, "sent": sent, "witnessed": got},
	}, nil
}
