package gateway

import (
	"io"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// podPair joins two connections of the netstack, a client pod's and one to an
// endpoint. As in a splice each direction ends by itself and a reset goes through.
//
// Bytes are copied once: what one connection has received is read straight into the
// buffers that the other sends from. Both have an allowance, at the client's expense.
type podPair struct {
	client, server *podConn
	to             backend
	stats          *proxyCounters
	g              *Gateway

	used   atomic.Uint32 // tick of the last byte
	halves atomic.Int32  // directions that have ended
}

// run moves bytes until both directions have ended. It closes both connections.
func (p *podPair) run() {
	p.used.Store(p.g.tick.Load())
	client := newAllowance(p.g.memory, p.client)
	if client != nil {
		defer client.close()
		if server := newAllowanceOf(p.g.memory, client.pod, p.server); server != nil {
			defer server.close()
			p.join(end{p.client, client}, end{p.server, server})
			return
		}
	}
	p.g.counters.memoryCapped.Add(1)
	p.abort()
}

// end is one side of a pair.
type end struct {
	*podConn
	allowed *allowance
}

func (p *podPair) join(client, server end) {
	if p.g.begin(p) {
		var up sync.WaitGroup
		up.Go(func() { p.end(p.move(client, server, &p.stats.toClients)) })
		p.end(p.move(server, client, &p.stats.toEndpoints))
		up.Wait()
		p.g.connections.remove(p)
	} else {
		p.abort()
	}
	p.client.close()
	p.server.close()
}

func (p *podPair) end(err error) {
	if err != nil {
		p.abort()
	}
	p.halves.Add(1)
}

// abort resets both sides.
func (p *podPair) abort() {
	p.client.abort()
	p.server.abort()
}

// idle reports whether the connection has been silent too long.
func (p *podPair) idle(tick, limit, halfClosedLimit uint32) bool {
	if p.halves.Load() > 0 {
		limit = halfClosedLimit
	}
	return tick-p.used.Load() >= limit
}

func (p *podPair) backend() backend { return p.to }

// move carries what src sends to dst until src has finished.
func (p *podPair) move(dst, src end, moved *atomic.Uint64) error {
	readable, writable := src.watch(waiter.ReadableEvents), dst.watch(waiter.WritableEvents)
	defer readable.stop()
	defer writable.stop()
	from := unread{src.ep}
	blocked, since := false, uint32(0) // whether dst has no room, and from which tick on
	for {
		n, err := dst.ep.Write(&from, tcpip.WriteOptions{})
		if n > 0 {
			tick := p.g.tick.Load()
			p.used.Store(tick)
			p.g.counters.bytes.Add(uint64(n))
			moved.Add(uint64(n))
			src.allowed.received(int(n), tick)
			if blocked && tick-since <= 1 {
				dst.allowed.growSend() // its peer reads: only the buffer was short
			}
			blocked = false
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			if !blocked {
				blocked, since = true, p.g.tick.Load()
			}
			select {
			case <-writable.ch:
			case <-readable.ch:
				if tcp.EndpointState(src.ep.State()) == tcp.StateError {
					return errReset
				}
			}
			continue
		default:
			return errReset
		}
		if n > 0 {
			continue
		}
		switch err := from.pending(); err {
		case nil:
		case errWouldBlock:
			<-readable.ch
		case io.EOF:
			dst.closeWrite()
			return nil
		default:
			return err
		}
	}
}

// unread is what a connection has received, as the payload of another's write.
type unread struct{ ep tcpip.Endpoint }

// Len is the number of bytes that wait. They can only become more: nobody else reads.
func (u *unread) Len() int {
	n, err := u.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if err != nil {
		return 0
	}
	return n
}

// Read takes some of them.
func (u *unread) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	w := tcpip.SliceWriter(b)
	res, err := u.ep.Read(&w, tcpip.ReadOptions{})
	if err != nil && res.Count == 0 {
		return 0, io.EOF // less than Len promised: the connection broke meanwhile
	}
	return res.Count, nil
}

// pending says why nothing waits: errWouldBlock, io.EOF or errReset. Nil: something
// does by now.
func (u *unread) pending() error {
	_, err := u.ep.Read(io.Discard, tcpip.ReadOptions{Peek: true})
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrWouldBlock:
		return errWouldBlock
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	}
	return errReset
}
