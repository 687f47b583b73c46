package gateway

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"

	"vswitch/internal/share"
	"vswitch/internal/wire"
)

// What the gateway's TCP connections hold in memory is bounded, all together: a
// pod that opens thousands and never reads (a zero window for ever), or whose
// servers never do, fills buffers with what nobody takes.
//
// Each connection has an allowance, taken from one pool that is shared out between
// pods (package share): the netstack's two buffers, and as much again on the way
// between them and the host's socket. It begins small and doubles as long as the
// connection moves what it gets: one that stalls stays where it is. Buffers are
// not made smaller before the connection ends: what was once announced as a window
// may come.

const (
	// A connection's first buffers, each way. They bound the first round trips alone.
	firstBufferBytes = 64 << 10
	// The smallest, for when the pool is nearly empty. It still holds ten segments.
	leastBufferBytes = 16 << 10

	// The pool: a part of this machine's memory, within bounds. With the default
	// ConnectionsPerPod one pod's first buffers fill half of the largest pool.
	memoryShare   = 8
	leastMemory   = 64 << 20
	largestMemory = 2 << 30
)

const _ = uint(largestMemory/2 - 4*firstBufferBytes*defaultConnectionsPerPod)

// defaultMemoryBytes is the pool's size on this machine.
func defaultMemoryBytes() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return leastMemory
	}
	return min(max(int64(info.Totalram)*int64(info.Unit)/memoryShare, leastMemory), largestMemory)
}

// allowance is what one connection may hold.
type allowance struct {
	pool *share.Pool[wire.Addr]
	pod  wire.Addr
	ep   tcpip.Endpoint

	mu            sync.Mutex
	send, receive int64 // guarded by mu: sizes of the netstack's buffers
	taken         int64 // guarded by mu

	// What the pod sent and the host took at once since the tick, for received alone.
	arrived int64
	since   uint32
}

// newAllowance takes a connection's first buffers; nil: there is no room. Close
// gives back all.
func newAllowance(pool *share.Pool[wire.Addr], c *podConn) *allowance {
	var pod wire.Addr
	if remote, err := c.ep.GetRemoteAddress(); err == nil {
		pod = addrOf(remote.Addr)
	}
	return newAllowanceOf(pool, pod, c)
}

// newAllowanceOf is newAllowance at the expense of a certain pod.
func newAllowanceOf(pool *share.Pool[wire.Addr], pod wire.Addr, c *podConn) *allowance {
	a := &allowance{pool: pool, pod: pod, ep: c.ep}
	for _, size := range []int64{firstBufferBytes, leastBufferBytes} {
		if pool.Take(a.pod, 4*size) {
			a.send, a.receive, a.taken = size, size, 4*size
			// Set even where it is the default: it ends the netstack's own tuning.
			c.ep.SocketOptions().SetSendBufferSize(size, true)
			c.ep.SocketOptions().SetReceiveBufferSize(size, true)
			return a
		}
	}
	return nil
}

func (a *allowance) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.Give(a.pod, a.taken)
	a.taken = 0
}

// chunks are how much may be read at once for each way: what can't be passed on is
// kept, and has to have room.
func (a *allowance) toPodChunk() int  { return a.chunk(&a.send) }
func (a *allowance) toHostChunk() int { return a.chunk(&a.receive) }

func (a *allowance) chunk(size *int64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int(min(*size, spliceBytes))
}

// growSend doubles the buffer towards the pod, if there is room.
func (a *allowance) growSend() {
	if size, ok := a.grow(&a.send); ok {
		a.ep.SocketOptions().SetSendBufferSize(size, true)
	}
}

// received notes n bytes from the pod that the host took at once, and doubles the
// buffer from the pod, if there is room, once it is filled four times within two
// ticks. One goroutine calls it.
func (a *allowance) received(n int, tick uint32) {
	if tick-a.since > 1 {
		a.since, a.arrived = tick, 0
	}
	a.arrived += int64(n)
	a.mu.Lock()
	enough := a.arrived >= 4*a.receive
	a.mu.Unlock()
	if !enough {
		return
	}
	a.arrived = 0
	if size, ok := a.grow(&a.receive); ok {
		a.ep.SocketOptions().SetReceiveBufferSize(size, true)
	}
}

func (a *allowance) grow(size *int64) (int64, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// The way between buffer and socket never holds more than one spliceBytes.
	more := *size + min(2**size, spliceBytes) - min(*size, spliceBytes)
	if 2**size > bufferMaxBytes || !a.pool.Take(a.pod, more) {
		return 0, false
	}
	*size *= 2
	a.taken += more
	return *size, true
}

// parcel is what was read on one side and not yet taken on the other.
type parcel struct {
	rest []byte
	buf  *[spliceBytes]byte // that rest lies in, or nil
	a    *allowance
}

// keep holds rest, which lies in buf, until its taker is ready: in buf, if there is
// room for so much, or else in a copy of just its size, which the allowance covers.
// Release it.
func (a *allowance) keep(buf *[spliceBytes]byte, rest []byte) parcel {
	if a.pool.Take(a.pod, spliceBytes) {
		return parcel{rest, buf, a}
	}
	rest = bytes.Clone(rest)
	splicePool.Put(buf)
	return parcel{rest, nil, a}
}

func (p *parcel) release() {
	if p.buf != nil {
		splicePool.Put(p.buf)
		p.a.pool.Give(p.a.pod, spliceBytes)
	}
}
