package attach

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/control/ipam"
	"vswitch/internal/fdstore"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

// The manager calls its doubles under its own lock, so they need none.

// leases hands out 10.244.0.2, .3 and so on.
type leases struct {
	held map[string][]netip.Addr
	free int
	next byte
}

func (l *leases) Lease(holder string) ([]netip.Addr, error) {
	if l.free == 0 {
		return nil, ipam.ErrExhausted
	}
	l.free--
	l.next++
	v6 := netip.MustParseAddr("fd00:10:244::").As16()
	v6[15] = 1 + l.next
	l.held[holder] = []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, 1 + l.next}), netip.AddrFrom16(v6)}
	return l.held[holder], nil
}

func (l *leases) Hold(holder string, addrs []netip.Addr) error {
	for other, has := range l.held {
		if other != holder && has[0] == addrs[0] {
			return errors.New("held by " + other)
		}
	}
	l.held[holder] = addrs
	return nil
}

func (l *leases) Release(holder string) {
	if l.held[holder] != nil {
		delete(l.held, holder)
		l.free++
	}
}

func (l *leases) Holders() []string { return slices.Sorted(maps.Keys(l.held)) }

// ports is a switch that only keeps the list of its ports, and closes queues as one does.
type ports struct {
	open map[uint32]vswitch.PortConfig
	next uint32
	err  error
}

func (p *ports) AddPort(c vswitch.PortConfig) (uint32, error) {
	if p.err != nil {
		for _, q := range c.Queues {
			q.Close()
		}
		return 0, p.err
	}
	p.next++
	p.open[p.next] = c
	return p.next, nil
}

func (p *ports) RemovePort(id uint32) error {
	c, ok := p.open[id]
	if !ok {
		return errors.New("no such port")
	}
	delete(p.open, id)
	for _, q := range c.Queues {
		q.Close()
	}
	return nil
}

type routes map[netip.Addr]fib.NextHop

func (r routes) SetHost(a netip.Addr, nh fib.NextHop) { r[a] = nh }
func (r routes) DeleteHost(a netip.Addr) bool         { delete(r, a); return true }

type pods struct{ published map[control.Key]*corev1.Pod }

func (p *pods) PublishPod(pod *corev1.Pod)   { p.published[control.KeyOf(pod)] = pod }
func (p *pods) UnpublishPod(key control.Key) { delete(p.published, key) }

// openQueues counts queues that nobody closed.
var openQueues atomic.Int64

type queue struct{ fd int }

func newQueue(fd int) *queue {
	openQueues.Add(1)
	return &queue{fd}
}

func (q *queue) PollFD() int                { return -1 }
func (q *queue) Receive(*frame.Batch) error { return nil }
func (q *queue) Transmit([]*frame.Frame)    {}

func (q *queue) Close() error {
	openQueues.Add(-1)
	return unix.Close(q.fd)
}

// full is an fd store without room.
type full struct {
	fdstore.Store
	err error
}

func (f full) Put(name string, fds []int) error {
	if f.err != nil {
		return f.err
	}
	return f.Store.Put(name, fds)
}

// failing are Records whose disk is broken.
type failing struct {
	Records
	err error
}

func (f failing) Save(all []Attachment) error {
	if f.err != nil {
		return f.err
	}
	return f.Records.Save(all)
}
