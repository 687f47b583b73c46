package node

import (
	"context"
	"log/slog"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
)

// orphans are the TCP connections that ended in the netstack of the process before
// this one, and with it, if that had no time to reset them: a pod that waits for the other
// side to speak would wait for ever. The flow table, which outlived that process,
// knows them.
type orphans struct {
	flows   *flow.Table
	provoke func(*flow.Key) bool // gateway.Gateway.Provoke
	log     *slog.Logger
	keys    []flow.Key // of what the gateway sends
}

const (
	// What is lost the first time, on the way to another node perhaps, is to be there
	// within the second. A pod answers twice a second at most (tcp_invalid_ratelimit,
	// in Linux's ip-sysctl), which is not harmed.
	orphanPauseMin = 100 * time.Millisecond
	orphanPauseMax = 16 * time.Second
	// orphanPatience is how long a pod may take to come back, whose device the plugin
	// has to open again.
	orphanPatience = 2 * time.Minute
	// fullRingPause is time for workers to take what is in the gateway's rings.
	fullRingPause = 5 * time.Millisecond
)

// findOrphans looks for them in a table that another process left. What this one has
// put there in the meantime takes no harm.
func findOrphans(flows *flow.Table, routes *fib.Table) (keys []flow.Key) {
	for i := range flows.All() {
		if !orphaned(i.State) || i.Orig.Proto != wire.ProtoTCP {
			continue
		}
		if i.Flags&flow.ReplyToGateway != 0 {
			keys = append(keys, i.Orig)
			continue
		}
		switch to := routes.Lookup(&i.Reply.Src).Kind; {
		case i.Flags&flow.ToGateway != 0, to == fib.Egress, to == fib.Node:
			keys = append(keys, i.Reply)
		}
	}
	return keys
}

// orphaned reports whether one who waits for the other may be there. Who has sent a
// SYN sends it again.
func orphaned(s flow.State) bool {
	switch s {
	case flow.SynReceived, flow.Established, flow.Midstream, flow.HalfClosedForward, flow.HalfClosedReply:
		return true
	}
	return false
}

// resetOrphans runs once workers carry frames.
func (n *node) resetOrphans(ctx context.Context) error {
	o := &orphans{flows: n.flows, provoke: n.gateway.Load().Provoke, log: n.log, keys: findOrphans(n.flows, n.fib)}
	return o.run(ctx)
}

// run provokes a reset of each until none is left, or for as long as a pod may take to
// come back.
func (o *orphans) run(ctx context.Context) error {
	if len(o.keys) == 0 {
		return nil
	}
	found, began := len(o.keys), time.Now()
	pause := orphanPauseMin
	for len(o.keys) > 0 && time.Since(began) < orphanPatience {
		if !o.round(ctx) {
			return nil
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, orphanPauseMax)
		o.forget()
	}
	o.log.Info("connections that the process before had with pods are reset", "connections", found-len(o.keys), "silent", len(o.keys))
	return nil
}

// round provokes each once.
func (o *orphans) round(ctx context.Context) bool {
	for i := range o.keys {
		for !o.provoke(&o.keys[i]) {
			if !sleep(ctx, fullRingPause) {
				return false
			}
		}
	}
	return true
}

// forget drops those that are over.
func (o *orphans) forget() {
	left := o.keys[:0]
	for _, k := range o.keys {
		if i, _, ok := o.flows.Find(&k); ok && orphaned(i.State) {
			left = append(left, k)
		}
	}
	o.keys = left
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
