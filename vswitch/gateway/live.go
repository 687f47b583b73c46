package gateway

import (
	"net"
	"sync"
	"time"

	"vswitch/internal/uptime"
)

// The gateway's clock counts ticks, stored by the janitor, so that noting when a
// datagram passed costs no clock read. It counts from the machine's start, since what is
// remembered of clients outlives the process.
const (
	tickInterval = 500 * time.Millisecond
	ticksPerSec  = uint32(time.Second / tickInterval)
)

func ticksAt(up time.Duration) uint32 { return uint32(up / tickInterval) }

// TickNow is the clock's tick where there is no gateway yet.
func TickNow() (uint32, error) {
	up, err := uptime.Now()
	return ticksAt(up), err
}

// ticksOf is a time limit in ticks, at least one.
func ticksOf(d time.Duration) uint32 {
	return uint32(min(max(d/tickInterval, 1), 1<<31))
}

// connection is a pair of joined TCP connections.
type connection interface {
	abort()
	// idle reports whether neither direction has moved a byte for too long.
	idle(tick, limit, halfClosedLimit uint32) bool
	// backend is the endpoint it leads to; zero: none of a service's.
	backend() backend
}

// connections are those under way, so that they can be ended.
type connections struct {
	mu     sync.Mutex
	all    map[connection]struct{} // guarded by mu
	closed bool                    // guarded by mu
}

// add is false when the gateway is closing.
func (c *connections) add(conn connection) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	if c.all == nil {
		c.all = make(map[connection]struct{})
	}
	c.all[conn] = struct{}{}
	return true
}

func (c *connections) remove(conn connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
}

// abortIf resets the connections for which f holds.
func (c *connections) abortIf(f func(connection) bool) {
	c.mu.Lock()
	var end []connection
	for conn := range c.all {
		if f(conn) {
			end = append(end, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range end {
		conn.abort()
	}
}

// close resets all connections and lets no more begin.
func (c *connections) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.abortIf(func(connection) bool { return true })
}

// hostPair is a client joined with a program on a node: two sockets of the host,
// whose bytes the kernel moves. Keep-alive alone ends it when it is dead.
type hostPair struct {
	client, server *net.TCPConn
	to             backend
}

func (p *hostPair) abort() {
	reset(p.client)
	reset(p.server)
}

func (*hostPair) idle(_, _, _ uint32) bool { return false }

func (p *hostPair) backend() backend { return p.to }
