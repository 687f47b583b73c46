package gateway

import (
	"context"
	"time"

	"vswitch/internal/wire"
)

// drainPoll is how often Drain looks whether connections are left.
const drainPoll = 20 * time.Millisecond

// Drain takes no more TCP connections, and waits until those under way have ended or
// ctx has; it returns how many have not. Those that are still being made, to a pod or to the
// host, are under way. All else goes on.
//
// A pod's SYN gets no answer (drop.Draining): its kernel takes that for a loss and
// repeats it, to the next process if there is one. Ports of the host are closed; if there is a
// successor, clients that come meanwhile wait for it in the kernel, and else
// they are refused.
func (g *Gateway) Drain(ctx context.Context, successor bool) (left int) {
	g.draining.Store(true)
	g.listeners.drain(successor)
	g.listeners.accepting.Wait() // whom a loop has just let in counts from here on
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		if left = g.usage.all() + int(g.listeners.clients.Load()); left == 0 {
			return 0
		}
		select {
		case <-ctx.Done():
			return left
		case <-g.ctx.Done():
			return left
		case <-tick.C:
		}
	}
}

// drain closes TCP ports for good.
func (l *listeners) drain(successor bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
	for k, sl := range l.slots {
		if k.proto != wire.ProtoTCP {
			continue
		}
		for a, o := range sl.open {
			if successor { // the socket stays with who keeps it
				o.Close()
				delete(sl.open, a)
			} else {
				l.shut(k, a)
			}
		}
	}
}
