package vswitch

import (
	"sync/atomic"

	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// captureRing takes one worker's frames to the reader of one capture: a ring of
// records and one of their bytes, each with one writer and one reader. Where either
// is full the frame is not captured and counted; the worker never waits.
//
// What a batch adds is published at its end. Until then the worker may still say
// of a frame that it was dropped.
type captureRing struct {
	records []captureRecord // a power of two
	bytes   []byte

	// The worker's own.
	next  uint64      // records written so far, published or not
	write uint64      // bytes written so far; modulo len(bytes) it is where to go on
	marks []batchMark // of this batch

	published atomic.Uint64 // records the reader may take
	taken     atomic.Uint64 // records the reader is done with
	freed     atomic.Uint64 // bytes the reader is done with, counted as write is
	lost      atomic.Uint64 // frames there was no room for
}

// captureRecord is a captured frame whose bytes lie in the ring.
type captureRecord struct {
	port      *port
	unixNano  int64
	start     uint64 // first byte, counted as write is
	end       uint64
	wireBytes int // length of the frame itself
	peer      uint32
	vnet      frame.VNet
	direction Direction
	drop      drop.Reason
}

// batchMark says which frame of the batch a record is of.
type batchMark struct {
	frame  *frame.Frame
	record uint64
}

func newCaptureRing(records, bytes int) *captureRing {
	return &captureRing{
		records: make([]captureRecord, records), bytes: make([]byte, bytes),
		marks: make([]batchMark, 0, 4*frame.BatchFrames),
	}
}

// reserve finds room for a record of n bytes; nil: there is none. The record's
// start and end are set.
func (r *captureRing) reserve(n int) *captureRecord {
	size := uint64(len(r.bytes))
	start := r.write
	if start%size+uint64(n) > size { // a frame's bytes lie in one piece
		start += size - start%size
	}
	if r.next-r.taken.Load() == uint64(len(r.records)) || start+uint64(n)-r.freed.Load() > size {
		r.lost.Add(1)
		return nil
	}
	r.write = start + uint64(n)
	rec := &r.records[r.next%uint64(len(r.records))]
	*rec = captureRecord{start: start, end: r.write}
	return rec
}

// keep makes the record reserved last part of the batch, as one of f.
func (r *captureRing) keep(f *frame.Frame) {
	if len(r.marks) < cap(r.marks) {
		r.marks = append(r.marks, batchMark{f, r.next})
	}
	r.next++
}

// dropped says of the records of f that it went no further, and reports whether
// there are any.
func (r *captureRing) dropped(f *frame.Frame, why drop.Reason) (found bool) {
	for _, m := range r.marks {
		if m.frame != f {
			continue
		}
		found = true
		if rec := &r.records[m.record%uint64(len(r.records))]; rec.drop == drop.None {
			rec.drop = why
		}
	}
	return found
}

// publish ends a batch.
func (r *captureRing) publish() {
	r.marks = r.marks[:0]
	r.published.Store(r.next)
}

func (r *captureRing) at(pos, n uint64) []byte {
	i := pos % uint64(len(r.bytes))
	return r.bytes[i : i+n]
}

// take appends what is published to all, detached from the ring. The reader's.
func (r *captureRing) take(all []Captured) []Captured {
	until := r.published.Load()
	for i := r.taken.Load(); i < until; i++ {
		rec := &r.records[i%uint64(len(r.records))]
		all = append(all, Captured{
			UnixNano: rec.unixNano, Port: rec.port.name, Kind: rec.port.kind, Direction: rec.direction,
			Peer: rec.peer, Drop: rec.drop, VNet: rec.vnet, Bytes: rec.wireBytes,
			Data: append([]byte(nil), r.at(rec.start, rec.end-rec.start)...),
		})
		r.freed.Store(rec.end)
		rec.port = nil
		r.taken.Store(i + 1)
	}
	return all
}
