// Package gatewaytest puts pods around a gateway without a switch, a TAP or a
// privilege: each pod is a netstack of its own, and one goroutine carries frames
// between them and the gateway's queues. Only tests import it.
package gatewaytest

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// queue is what a frame goes through: vswitch.Queue.
type queue interface {
	PollFD() int
	Receive(b *frame.Batch) error
	Transmit(fs []*frame.Frame)
	Close() error
}

// Net stands for the switch: frames for a pod's address go to that pod, all
// others to the gateway.
type Net struct {
	t       testing.TB
	gateway []queue
	wake    int // eventfd: the set of pods has changed, or the net stops
	stop    atomic.Bool
	done    sync.WaitGroup
	drops   [drop.Count]atomic.Uint64
	tap     atomic.Pointer[func(f *frame.Frame, fromGateway bool)]

	mu   sync.Mutex
	pods []*Pod // guarded by mu
}

// New carries frames for the queues of a gateway until the test ends; it closes
// them.
func New(t testing.TB, gateway ...queue) *Net {
	t.Helper()
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	n := &Net{t: t, gateway: gateway, wake: wake}
	n.done.Go(n.run)
	t.Cleanup(n.close)
	return n
}

// Stop carries no more frames and closes the gateway's queues, as a switch does that
// removes a port. It may be called twice.
func (n *Net) Stop() {
	n.stop.Store(true)
	n.poke()
	n.done.Wait()
	for _, q := range n.gateway {
		q.Close()
	}
}

func (n *Net) close() {
	n.Stop()
	for _, p := range n.pods {
		p.close()
	}
	unix.Close(n.wake)
}

func (n *Net) poke() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(n.wake, one[:])
}

// Drops is how many frames the gateway dropped for a reason.
func (n *Net) Drops(r drop.Reason) uint64 { return n.drops[r].Load() }

// Watch has f see every frame before it is delivered; nil ends that. What f does
// to the frame is done to what is delivered.
func (n *Net) Watch(f func(f *frame.Frame, fromGateway bool)) {
	if f == nil {
		n.tap.Store(nil)
		return
	}
	n.tap.Store(&f)
}

func (n *Net) run() {
	b := frame.NewBatch(frame.BatchFrames)
	for !n.stop.Load() {
		fds := []unix.PollFd{{Fd: int32(n.wake), Events: unix.POLLIN}}
		queues := []queue{nil}
		add := func(q queue) {
			fds = append(fds, unix.PollFd{Fd: int32(q.PollFD()), Events: unix.POLLIN})
			queues = append(queues, q)
		}
		for _, q := range n.gateway {
			add(q)
		}
		for _, p := range n.Pods() {
			add(p.queue)
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			n.t.Errorf("gatewaytest: poll: %v", err)
			return
		}
		var count [8]byte
		unix.Read(n.wake, count[:])
		for i, q := range queues[1:] {
			if fds[i+1].Revents == 0 {
				continue
			}
			b.Reset()
			if err := q.Receive(b); err != nil {
				n.t.Errorf("gatewaytest: receive: %v", err)
				return
			}
			n.forward(b, i < len(n.gateway))
		}
	}
}

// Pods are the pods there are now.
func (n *Net) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods
}

func (n *Net) forward(b *frame.Batch, fromGateway bool) {
	var h wire.Headers
	pods := n.Pods() // later than the poll: a frame may be for a pod added since
	for i := range b.Len() {
		f := b.At(i)
		if tap := n.tap.Load(); tap != nil {
			(*tap)(f, fromGateway)
		}
		if wire.Parse(f.Bytes(), &h) != drop.None {
			continue
		}
		var to queue
		for _, p := range pods {
			if p.owns(h.Dst.Netip()) {
				to = p.queue
			}
		}
		switch {
		case to == nil && !fromGateway:
			to = n.gateway[0]
		case to == nil:
			continue
		}
		to.Transmit([]*frame.Frame{f})
		if !fromGateway {
			n.drops[f.Drop].Add(1)
		}
	}
}

// Inject gives the gateway one frame as if a pod had sent it, and reports what
// became of it. It must not be called while pods are sending.
func (n *Net) Inject(f *frame.Frame) drop.Reason {
	n.gateway[0].Transmit([]*frame.Frame{f})
	return f.Drop
}

// AbortPods resets every connection of every pod.
func (n *Net) AbortPods() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		for _, ep := range p.Stack.RegisteredEndpoints() {
			ep.Abort()
		}
	}
}

// Addrs parses addresses, for tests' tables.
func Addrs(s ...string) []netip.Addr {
	as := make([]netip.Addr, len(s))
	for i := range s {
		as[i] = netip.MustParseAddr(s[i])
	}
	return as
}
