package node

import (
	"context"
	"fmt"
	"time"
)

// What a node does beside forwarding, for as long as it runs ((*node).start): it looks at
// queues that died, at flows that nobody uses and at attachments that time is up for.

const (
	// sweepInterval is how often attachments are looked at for what only time tells.
	sweepInterval = 10 * time.Second
	// leasesInterval is how far their file is behind at most: what a crash takes of it
	// is whose turn it is (control/ipam).
	leasesInterval = time.Second
	// expiryInterval is how often a share of the flow table is looked through. A
	// wake-up costs an idle node more than the look.
	expiryInterval = time.Second
	// expiryRounds intervals pass between two looks at the same flow of a full table.
	expiryRounds = 10
	// maxDeaths is how many queues may die before the first is looked at: all of
	// 110 pods, Kubernetes' limit of a node, with eight queues each.
	maxDeaths = 1024
)

// death is a port whose device or socket has gone.
type death struct {
	port  string
	cause error
}

// queueDied is called by a worker, which must not wait.
func (n *node) queueDied(port string, cause error) {
	select {
	case n.deaths <- death{port, cause}:
	default:
		n.log.Error("too many devices die at once; this pod stays until it is deleted", "port", port, "err", cause)
	}
}

func (n *node) mourn(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-n.deaths:
			if d.port == gatewayName || d.port == tunnelName {
				return fmt.Errorf("port %s: %w", d.port, d.cause)
			}
			n.attachments.Died(d.port, d.cause)
		}
	}
}

func (n *node) expireFlows(ctx context.Context) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			n.flows.Expire(n.ports.sw.Load().Tick(), n.flows.Cap()/expiryRounds+1)
		}
	}
}

func (n *node) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	leases := time.NewTicker(leasesInterval)
	defer leases.Stop()
	for {
		select {
		case <-ctx.Done():
			n.flushLeases()
			return nil
		case now := <-tick.C:
			n.attachments.Sweep(now)
		case <-leases.C:
			n.flushLeases()
		}
	}
}

func (n *node) flushLeases() {
	if err := n.pool.Flush(); err != nil {
		n.log.Warn("leases not written; trying again", "err", err)
	}
}
