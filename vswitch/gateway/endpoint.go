package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/internal/wire"
)

// Keep-alive finds peers that vanished without a word, on both sides: after a
// minute of silence, four probes a quarter of a minute apart.
const (
	keepAliveIdle     = time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 4
)

// podConn is the netstack's end of a TCP connection with a pod. One goroutine
// reads and one writes; any may abort.
type podConn struct {
	ep tcpip.Endpoint
	wq *waiter.Queue

	mu   sync.Mutex
	over bool // guarded by mu: closed or aborted; ep is not to be touched
}

func newPodConn(ep tcpip.Endpoint, wq *waiter.Queue) *podConn {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepAliveIdle), tcpip.KeepaliveIntervalOption(keepAliveInterval)
	// These can't fail on a TCP endpoint.
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveCount)
	return &podConn{ep: ep, wq: wq}
}

// errReset stands for every way in which a connection breaks.
var errReset = errors.New("connection broken")

// eventWait is a registration for events of a connection; its channel holds one
// token, so that an event between a try and the wait for it is not missed.
type eventWait struct {
	entry waiter.Entry
	ch    chan struct{}
	wq    *waiter.Queue
}

func (c *podConn) watch(mask waiter.EventMask) *eventWait {
	w := &eventWait{wq: c.wq}
	w.entry, w.ch = waiter.NewChannelEntry(mask | waiter.EventHUp | waiter.EventErr)
	c.wq.EventRegister(&w.entry)
	return w
}

func (w *eventWait) stop() { w.wq.EventUnregister(&w.entry) }

// onReset calls f, which must not wait and may be called more than once, when the
// connection breaks: who waits for the other side's socket would not notice.
func (c *podConn) onReset(f func()) *eventWait {
	check := func(waiter.EventMask) {
		if tcp.EndpointState(c.ep.State()) == tcp.StateError {
			f()
		}
	}
	w := &eventWait{wq: c.wq, entry: waiter.NewFunctionEntry(waiter.EventHUp|waiter.EventErr, check)}
	c.wq.EventRegister(&w.entry)
	check(0) // it may have broken before
	return w
}

// read fills b with what is there: io.EOF when the pod has finished sending,
// errWouldBlock when there is nothing yet.
func (c *podConn) read(b []byte) (int, error) {
	w := tcpip.SliceWriter(b)
	res, err := c.ep.Read(&w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, errWouldBlock
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, errReset
}

var errWouldBlock = errors.New("would block")

// tryWrite sends what there is room for: errWouldBlock if that is not all.
func (c *podConn) tryWrite(b []byte) (int, error) {
	var r bytes.Reader
	sent := 0
	for sent < len(b) {
		r.Reset(b[sent:])
		// To copy little is not worth letting go of the connection's lock meanwhile.
		n, err := c.ep.Write(&r, tcpip.WriteOptions{Atomic: len(b) <= largeBytes})
		sent += int(n)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return sent, errWouldBlock
		default:
			return sent, errReset
		}
	}
	return sent, nil
}

// write sends all of b, waiting for room.
func (c *podConn) write(b []byte, w *eventWait) error {
	for {
		n, err := c.tryWrite(b)
		if err != errWouldBlock {
			return err
		}
		b = b[n:]
		<-w.ch
	}
}

// closeWrite tells the pod that nothing more will come.
func (c *podConn) closeWrite() { c.ep.Shutdown(tcpip.ShutdownWrite) }

// abort resets the connection and wakes reader and writer.
func (c *podConn) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		c.ep.Abort()
	}
}

// close ends a connection whose two directions are done.
func (c *podConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		c.ep.Close()
	}
}

// dialPod opens a connection to a pod in the name of src; port zero, or one that
// is taken, gets another.
func dialPod(ctx context.Context, s *stack.Stack, src, dst netip.AddrPort) (*podConn, error) {
	dstAddr, srcAddr := wire.AddrFrom(dst.Addr()), wire.AddrFrom(src.Addr())
	proto := header.IPv4ProtocolNumber
	if dst.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	wq := new(waiter.Queue)
	ep, terr := s.NewEndpoint(tcp.ProtocolNumber, proto, wq)
	if terr != nil {
		return nil, stackError{terr}
	}
	c := newPodConn(ep, wq)
	from := tcpip.FullAddress{NIC: nicWhole, Addr: tcpipAddr(&srcAddr), Port: src.Port()}
	if terr = ep.Bind(from); terr != nil && src.Port() != 0 {
		from.Port = 0
		terr = ep.Bind(from)
	}
	if terr != nil {
		c.close()
		return nil, stackError{terr}
	}
	w := c.watch(waiter.WritableEvents)
	defer w.stop()
	terr = ep.Connect(tcpip.FullAddress{NIC: nicWhole, Addr: tcpipAddr(&dstAddr), Port: dst.Port()})
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ctx.Done():
			c.abort()
			return nil, ctx.Err()
		case <-w.ch:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		c.close()
		return nil, stackError{terr}
	}
	return c, nil
}
