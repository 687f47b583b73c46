package vswitch

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// epollEvents bounds the queues served in one wake-up; those left are reported
// again by the next epoll_wait, in turn (epoll's ready list is a queue).
const epollEvents = 64

// worker is one OS thread and all that it alone touches: the ingress side of
// queue i of every port, its egress side, one batch and the frames staged out of it.
//
// A frame is staged on its egress port and sent when the batch has been decided,
// so that a queue's Transmit sees as many frames at once as there are. Order
// within a flow is kept: a flow's frames arrive on one queue, are decided in
// order and are staged on one port.
//
// Everything else reaches a worker through its mailbox, which it looks at only
// when its event descriptor says so: no lock is taken for a frame.
type worker struct {
	id     int
	sw     *Switch
	epfd   int
	wakeFD int
	tick   uint32 // the switch's, as of this wake-up

	poller poller
	woke   bool     // frames went where goroutines wait for them; see letRun
	polled []polled // by epoll slot; a slot whose queue is nil is free
	batch  *frame.Batch
	ports  []*port // the snapshot, loaded once per batch
	facts  *facts  // likewise

	staged  [][]*frame.Frame // by port id
	touched []*port          // ports with staged frames

	stages    // what is known of each frame of the batch
	coalescer offload.Coalescer
	waited    wire.Headers // of a fragment that waited and is sent now
	quoted    wire.Headers // of the packet that an ICMP error in hand quotes
	key       flow.Key     // the tuple the frame in hand came with
	hash      uint64       // of key
	hit       flow.Hit     // its flow, and whether the flow's rewrite has been done to it:
	rewritten bool
	rng       *rand.Rand
	scratch   [frame.EthernetBytes + maxErrorBytes]byte // an ICMP error being written
	tap       tapper

	mu      sync.Mutex
	mailbox []func() // guarded by mu
	stopped bool     // guarded by mu
	done    chan struct{}
}

type polled struct {
	port  *port
	queue Queue
}

func newWorker(s *Switch, id int) (*worker, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wakeFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	// Slot 0 is the mailbox.
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: 0}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakeFD, &event); err != nil {
		unix.Close(epfd)
		unix.Close(wakeFD)
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	return &worker{
		id: id, sw: s, epfd: epfd, wakeFD: wakeFD,
		poller:    poller{slots: &s.pollSlots},
		polled:    make([]polled, 1),
		batch:     frame.NewBatch(frame.BatchFrames),
		rng:       rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		done:      make(chan struct{}),
		coalescer: offload.Coalescer{USO: true},
	}, nil
}

// run is the worker's thread.
func (w *worker) run() {
	runtime.LockOSThread()
	defer close(w.done)
	events := make([]unix.EpollEvent, epollEvents)
	for {
		n, err := w.wait(events)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("vswitch: worker %d: epoll_wait: %v", w.id, err)) // only a broken epfd does this
		}
		w.tick = w.sw.Tick()
		for _, e := range events[:n] {
			if e.Fd == 0 {
				if w.runMailbox() {
					return
				}
				continue
			}
			// The mailbox may have freed the slot in this very round.
			if p := w.polled[e.Fd]; p.queue != nil {
				w.serve(p)
			}
		}
	}
}

// serve moves one batch from a queue.
func (w *worker) serve(p polled) {
	w.batch.Reset()
	err := p.queue.Receive(w.batch)
	w.forwardBatch(p.port)
	if err != nil {
		w.unpoll(p.queue)
		if w.sw.cfg.QueueDied != nil {
			w.sw.cfg.QueueDied(p.port.name, err)
		}
	}
}

func (w *worker) count(in *port, r drop.Reason) { in.counters[w.id].drops[r].add(1) }

// lost counts a frame that goes no further, and shows it to captures.
func (w *worker) lost(in *port, f *frame.Frame, r drop.Reason) {
	w.count(in, r)
	if w.tap.captures != nil {
		w.tapDrop(in, f, r)
	}
}

// stage puts a frame on its way out; flush sends it.
func (w *worker) stage(out *port, f *frame.Frame) {
	if len(w.staged[out.id]) == 0 {
		w.touched = append(w.touched, out)
	}
	w.staged[out.id] = append(w.staged[out.id], f)
}

// flush sends what is staged, port by port.
func (w *worker) flush(in *port) {
	for _, out := range w.touched {
		fs := w.staged[out.id]
		if w.tap.captures != nil {
			w.tapEgress(out, fs)
		}
		out.queues[w.id].Transmit(fs)
		w.woke = w.woke || out.kind == PortGateway
		frames, bytes := 0, 0
		for _, f := range fs {
			if f.Drop != drop.None {
				w.lost(in, f, f.Drop)
				continue
			}
			frames++
			bytes += f.Len()
		}
		c := &out.counters[w.id]
		c.egressFrames.add(uint64(frames))
		c.egressBytes.add(uint64(bytes))
		w.staged[out.id] = fs[:0]
	}
	w.touched = w.touched[:0]
}

// The rest is what others ask of a worker through its mailbox; the functions
// run on its thread, between batches.

// do runs fn on the worker's thread and waits for it. After the worker has
// stopped it runs fn at once: nobody else touches the worker then.
func (w *worker) do(fn func()) { w.begin(fn)() }

// begin is do that does not wait: what it returns does.
func (w *worker) begin(fn func()) (wait func()) {
	ran := make(chan struct{})
	if !w.post(func() { fn(); close(ran) }) {
		return func() { <-w.done; fn() }
	}
	return func() { <-ran }
}

// post leaves fn in the mailbox, or reports that nobody will look at it any more. It
// wakes the worker with mu held: once stopped is set, and the descriptors about to be
// closed, nobody writes to a number that may be another's by then.
func (w *worker) post(fn func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.mailbox = append(w.mailbox, fn)
	w.wake()
	return true
}

// wake is for holders of mu who have seen that the worker is not stopped.
func (w *worker) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// It fails only when the counter is about to overflow, and then the worker
	// has been woken already.
	_, _ = unix.Write(w.wakeFD, one[:])
}

// runMailbox does what was posted and reports whether the worker is to stop.
func (w *worker) runMailbox() bool {
	var b [8]byte
	_, _ = unix.Read(w.wakeFD, b[:])
	w.mu.Lock()
	todo, stop := w.mailbox, w.stopped
	w.mailbox = nil
	w.mu.Unlock()
	for _, fn := range todo {
		fn()
	}
	return stop
}

// stop ends the worker's thread, waits for it and closes its descriptors. It may be
// called twice.
func (w *worker) stop() {
	w.mu.Lock()
	already := w.stopped
	if !already {
		w.stopped = true
		w.wake()
	}
	w.mu.Unlock()
	<-w.done
	if !already {
		unix.Close(w.epfd)
		unix.Close(w.wakeFD)
	}
}

// makeRoom sizes what is indexed by port id.
func (w *worker) makeRoom(ports int) {
	for len(w.staged) < ports {
		w.staged = append(w.staged, make([]*frame.Frame, 0, frame.BatchFrames))
	}
	if cap(w.touched) < ports {
		w.touched = make([]*port, 0, 2*ports)
	}
}

func (w *worker) poll(p *port, q Queue) error {
	fd := q.PollFD()
	if fd < 0 {
		return nil
	}
	slot := len(w.polled)
	for i := 1; i < len(w.polled); i++ {
		if w.polled[i].queue == nil {
			slot = i
			break
		}
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(slot)}
	if err := unix.EpollCtl(w.epfd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	if slot == len(w.polled) {
		w.polled = append(w.polled, polled{})
	}
	w.polled[slot] = polled{port: p, queue: q}
	return nil
}

func (w *worker) unpoll(q Queue) {
	for i := range w.polled {
		if w.polled[i].queue == q {
			// The descriptor may be gone from the set by itself; either way it is out.
			_ = unix.EpollCtl(w.epfd, unix.EPOLL_CTL_DEL, q.PollFD(), nil)
			w.polled[i] = polled{}
		}
	}
}

// forget drops all the worker holds of a port.
func (w *worker) forget(p *port) { w.unpoll(p.queues[w.id]) }
