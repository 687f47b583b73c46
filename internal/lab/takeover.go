package lab

import (
	"context"
	"fmt"
	"slices"
)

// takeOver is the flag by which a daemon takes the place of the one that runs.
const takeOver = "--take-over"

// ReplaceDaemon starts another daemon, configured as the one that runs, in its place.
func (n *Node) ReplaceDaemon(ctx context.Context) error { return n.ReplaceDaemonBy(ctx, n.run) }

// ReplaceDaemonBy starts another daemon in the place of the one that runs, as a
// DaemonSet's new pod does, and waits until it is ready. The old one has then ended:
// by itself, or, where it took over from one before, because it was told to. If the
// new one fails, the old one is the node's daemon still.
func (n *Node) ReplaceDaemonBy(ctx context.Context, c RunConfig) error {
	old, run := n.daemon, n.run
	if old == nil || old.state() != "running" {
		return fmt.Errorf("lab: node %s: no daemon runs that could be replaced", n.Host)
	}
	if !slices.Contains(c.Args, takeOver) {
		c.Args = append(slices.Clone(c.Args), takeOver)
	}
	n.daemon = nil
	if err := n.StartDaemon(ctx, c); err != nil {
		if n.daemon != nil {
			n.daemon.Kill()
		}
		n.daemon, n.run = old, run
		return err
	}
	var err error
	if slices.Contains(run.Args, takeOver) {
		err = old.Stop()
	} else {
		err = old.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("lab: node %s: the daemon whose place was taken: %w", n.Host, err)
	}
	return nil
}
