package node

import (
	"context"
	"time"
)

// told returns what is to be called when the node is told to stop, or to hand over:
// connections that end in this process get --drain-timeout to end, while all else goes on, and
// then the node ends.
func (n *node) told(handOver bool) func() {
	return func() {
		defer n.cancel(nil)
		g := n.gateway.Load()
		if n.cfg.DrainTimeout == 0 || g == nil {
			return
		}
		n.log.Info("draining", "handover", handOver, "timeout", n.cfg.DrainTimeout)
		began := time.Now()
		ctx, cancel := context.WithTimeout(n.ctx, n.cfg.DrainTimeout)
		defer cancel()
		left := g.Drain(ctx, handOver)
		n.log.Info("drained", "took", time.Since(began), "reset", left)
	}
}
