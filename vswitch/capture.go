package vswitch

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"vswitch/internal/offload"
	"vswitch/internal/pcapfilter"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Captures. Frames cross no interface of the host's, so the switch itself must show
// them. While nobody asks, that costs a worker one atomic load a batch. While
// somebody does, a worker copies what is asked for into a ring of the capture's
// own (capture_ring.go) and goes on; what the ring has no room for is counted.
// The two records of a frame that enters and leaves cost some 120 ns with headers
// kept, and 230 ns with 1,400 bytes (BenchmarkCapture).
//
// A frame is captured where it enters, before anything is changed in it, and
// again where it leaves, with what it has become. One that is dropped is marked
// with the reason at the record of its entering. Frames of the tunnel are the inner ones.

// Direction is which way a frame crossed its port, seen from the switch.
type Direction uint8

// Directions.
const (
	Ingress Direction = iota + 1
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "out"
	}
	return "in"
}

// CaptureConfig says which frames to capture.
type CaptureConfig struct {
	// Port is the name of the one port whose frames count; empty: all.
	Port string
	// DropsOnly leaves all frames out but those dropped. They are then shown as
	// they were when they were dropped.
	DropsOnly bool
	// Filter decides by the frame; nil: all.
	Filter *pcapfilter.Filter
	// SnapBytes is how much of each frame is kept; 0: all of it.
	SnapBytes int
	// RingBytes is the room for frames not yet read, for each worker: 128 KiB to
	// 1 GiB; 0: 8 MiB.
	RingBytes int
}

const (
	defaultRingBytes = 8 << 20 // some milliseconds at 10 Gb/s, whole frames
	minRingBytes     = 128 << 10
	maxRingBytes     = 1 << 30
	// bytesPerRecord sizes the ring of records to the ring of bytes: small
	// packets, or a snap length of headers, fill both alike.
	bytesPerRecord = 128
	// maxCaptures bounds what one batch may cost.
	maxCaptures = 8
)

// Captured is one frame of a capture.
type Captured struct {
	UnixNano  int64 // of its batch
	Port      string
	Kind      PortKind
	Direction Direction
	Peer      uint32      // tunnel member that sent it or is to get it; 0: none
	Drop      drop.Reason // why it went no further; None: it did
	VNet      frame.VNet  // as it came or leaves; the checksum in Data is complete
	Bytes     int         // length of the frame
	Data      []byte      // its first bytes
}

// Capture is a capture in progress. Next has one caller; Close may be called by any.
type Capture struct {
	cfg   CaptureConfig
	sw    *Switch
	rings []*captureRing // by worker

	waiting atomic.Bool   // the reader is about to wait
	wake    chan struct{} // for it, of one place
	ended   chan struct{} // closed when no worker adds to the rings any more
}

// Capture begins to capture. The caller reads with Next and ends it with Close.
func (s *Switch) Capture(cfg CaptureConfig) (*Capture, error) {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = defaultRingBytes
	}
	if cfg.SnapBytes == 0 {
		cfg.SnapBytes = frame.MaxBytes
	}
	if cfg.RingBytes < minRingBytes || cfg.RingBytes > maxRingBytes {
		return nil, fmt.Errorf("vswitch: capture with a ring of %d bytes, want %d to %d", cfg.RingBytes, minRingBytes, maxRingBytes)
	}
	if cfg.SnapBytes < 0 {
		return nil, fmt.Errorf("vswitch: capture of %d bytes a frame, want 0 or more", cfg.SnapBytes)
	}
	c := &Capture{cfg: cfg, sw: s, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	records := 1
	for records < cfg.RingBytes/bytesPerRecord {
		records *= 2
	}
	for range s.workers {
		c.rings = append(c.rings, newCaptureRing(records, cfg.RingBytes))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("vswitch: capture: the switch is closed")
	}
	var all []*Capture
	if old := s.captures.Load(); old != nil {
		all = slices.Clone(*old)
	}
	if len(all) == maxCaptures {
		return nil, fmt.Errorf("vswitch: %d captures are running, the most there may be; end one", maxCaptures)
	}
	all = append(all, c)
	s.captures.Store(&all)
	return c, nil
}

// Close ends the capture; what was captured can still be read. It may be called twice.
func (c *Capture) Close() {
	s := c.sw
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.captures.Load(); old != nil && slices.Contains(*old, c) {
		rest := slices.DeleteFunc(slices.Clone(*old), func(x *Capture) bool { return x == c })
		if len(rest) == 0 {
			s.captures.Store(nil)
		} else {
			s.captures.Store(&rest)
		}
		s.Settle() // past the batches in which workers may still have seen c
		close(c.ended)
	}
}

// endCaptures ends all, the workers having stopped. Callers hold mu.
func (s *Switch) endCaptures() {
	if all := s.captures.Swap(nil); all != nil {
		for _, c := range *all {
			close(c.ended)
		}
	}
}

// Next waits for frames and returns them by time, as far as they are there. After
// Close, or the switch's, and when all has been read, the error is io.EOF.
func (c *Capture) Next(ctx context.Context) ([]Captured, error) {
	for {
		c.waiting.Store(true) // before looking: who publishes after the look will wake us
		if all := c.take(); len(all) > 0 {
			c.waiting.Store(false)
			return all, nil
		}
		select {
		case <-c.wake:
		case <-c.ended:
			if all := c.take(); len(all) > 0 {
				return all, nil
			}
			return nil, io.EOF
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *Capture) take() []Captured {
	var all []Captured
	for _, r := range c.rings {
		all = r.take(all)
	}
	slices.SortStableFunc(all, func(a, b Captured) int { return cmp.Compare(a.UnixNano, b.UnixNano) })
	return all
}

// Lost is how many frames were asked for and found no room so far.
func (c *Capture) Lost() uint64 {
	var n uint64
	for _, r := range c.rings {
		n += r.lost.Load()
	}
	return n
}

// The rest runs on the workers, and only while something captures.

// tapper is a worker's part in captures.
type tapper struct {
	captures *[]*Capture // nil: none; the snapshot, loaded once per batch
	unixNano int64
	headers  wire.Headers // of the frame looked at
}

// tapIngress captures a batch as it came.
func (w *worker) tapIngress(in *port) {
	w.tap.unixNano = time.Now().UnixNano()
	for i := range w.batch.Len() {
		w.tapFrame(in, w.batch.At(i), Ingress, drop.None)
	}
}

// tapEgress captures frames that are about to leave.
func (w *worker) tapEgress(out *port, fs []*frame.Frame) {
	w.tap.unixNano = time.Now().UnixNano()
	for _, f := range fs {
		w.tapFrame(out, f, Egress, drop.None)
	}
}

// tapDrop marks the records of a frame that was dropped.
func (w *worker) tapDrop(in *port, f *frame.Frame, r drop.Reason) {
	missing := false
	for _, c := range *w.tap.captures {
		missing = !c.rings[w.id].dropped(f, r) || missing
	}
	if missing {
		w.tapFrame(in, f, Ingress, r)
	}
}

// tapEnd shows the batch to the readers.
func (w *worker) tapEnd() {
	for _, c := range *w.tap.captures {
		c.rings[w.id].publish()
		if c.waiting.Load() && c.waiting.CompareAndSwap(true, false) {
			select {
			case c.wake <- struct{}{}:
			default: // it has been woken already
			}
		}
	}
	w.tap.captures = nil
}

// tapFrame gives the frame to each capture that asked for it. With a reason it is a
// drop, for those that have no record of the frame.
func (w *worker) tapFrame(p *port, f *frame.Frame, d Direction, why drop.Reason) {
	h := &w.tap.headers
	packet := pcapfilter.Packet{Frame: f.Bytes(), Headers: h}
	parsed := false
	for _, c := range *w.tap.captures {
		switch {
		case c.cfg.Port != "" && c.cfg.Port != p.name:
			continue
		case c.cfg.DropsOnly && why == drop.None:
			continue
		case why != drop.None && c.rings[w.id].has(f):
			continue
		}
		if !parsed {
			packet.Sound, parsed = wire.Parse(packet.Frame, h) == drop.None, true
		}
		if c.cfg.Filter.Match(&packet) {
			c.record(w, p, f, h, packet.Sound, d, why)
		}
	}
}

func (r *captureRing) has(f *frame.Frame) bool {
	return slices.ContainsFunc(r.marks, func(m batchMark) bool { return m.frame == f })
}

// record copies a frame into the worker's ring. A partial checksum is finished in
// the copy.
func (c *Capture) record(w *worker, p *port, f *frame.Frame, h *wire.Headers, sound bool, d Direction, why drop.Reason) {
	r := c.rings[w.id]
	b := f.Bytes()
	n := min(len(b), c.cfg.SnapBytes)
	rec := r.reserve(n)
	if rec == nil {
		return
	}
	rec.port, rec.unixNano, rec.wireBytes = p, w.tap.unixNano, len(b)
	rec.peer, rec.vnet, rec.direction, rec.drop = f.Peer, f.VNet, d, why
	kept := r.at(rec.start, uint64(n))
	copy(kept, b)
	if sound && f.VNet.Flags&frame.NeedsCsum != 0 {
		if at, sum, bad := offload.Finished(f, h); bad == drop.None && at+2 <= n {
			binary.BigEndian.PutUint16(kept[at:], sum)
		}
	}
	r.keep(f)
}
