// Package frame holds the unit the switch moves: an Ethernet frame with its
// offload metadata, and the batch such frames travel in.
//
// A frame is borrowed or owned. Borrowed: valid until the batch it came in is
// reused, that is until the next Receive into it. Owned: yours until Release.
// To keep a borrowed frame, Clone it. Nothing here reads headers (internal/wire)
// or does I/O.
package frame

import "vswitch/vswitch/drop"

const (
	// EthernetBytes is an untagged Ethernet header.
	EthernetBytes = 14
	// HeadroomBytes lie free before the Ethernet header of every frame a queue
	// receives: enough for the virtio-net header (10) that precedes the frame in
	// one write to a TAP, or a VXLAN header (8), rounded to a cache line.
	HeadroomBytes = 64
	// MaxBytes is the longest frame: an IP packet of 65,535 bytes (a TSO frame
	// included: Linux keeps gso_max_size at 65,536 unless told otherwise) behind
	// an Ethernet header.
	MaxBytes = EthernetBytes + 65535
	// bufferBytes is rounded up so that buffers laid end to end stay aligned.
	bufferBytes = (HeadroomBytes + MaxBytes + 63) &^ 63

	// BatchFrames is how many frames a worker handles between two looks at the
	// outside world. 64 small frames amortise the wake-up; see BatchBytes for large ones.
	BatchFrames = 64
	// BatchBytes stops a receive loop early: beyond about the size of a core's L2
	// cache the frame's bytes would be read from memory again on transmit.
	BatchBytes = 256 << 10
)

// The headroom must hold what stands before a frame on a TAP.
const _ = uint(HeadroomBytes - VNetHeaderBytes)

// Frame is one Ethernet frame and what is known about it outside its bytes.
type Frame struct {
	buf      []byte // HeadroomBytes + MaxBytes, fixed
	off, end int    // the frame's bytes are buf[off:end]

	// VNet is the offload metadata: as received, and as the egress must honour it.
	VNet VNet
	// Peer is the tunnel member that sent the frame, or that is to get it; zero: none.
	Peer uint32
	// Ingress: the frame crosses the tunnel in the network for traffic from outside
	// the cluster, so its source is no node's to answer for.
	Ingress bool
	// Hash spreads flows over queues, the same for every frame of a flow.
	Hash uint32
	// Drop is set by whoever finds that the frame can't go on; None otherwise.
	Drop drop.Reason
}

// New makes an owned, empty frame with its own buffer.
func New() *Frame { return NewSized(MaxBytes) }

// NewSized makes an owned, empty frame with room for n bytes only.
func NewSized(n int) *Frame {
	f := &Frame{buf: make([]byte, (HeadroomBytes+n+63)&^63)}
	f.Reset()
	return f
}

// Reset empties the frame and clears all it knows; the buffer stays.
func (f *Frame) Reset() {
	f.off, f.end = HeadroomBytes, HeadroomBytes
	f.VNet = VNet{}
	f.Peer, f.Hash, f.Ingress = 0, 0, false
	f.Drop = drop.None
}

// Bytes is the frame from its Ethernet header on.
func (f *Frame) Bytes() []byte { return f.buf[f.off:f.end] }

// Len is the frame's length in bytes.
func (f *Frame) Len() int { return f.end - f.off }

// Space is the whole room for a frame's bytes, for a receive to write into;
// SetLen then says how many it wrote. It starts HeadroomBytes into the buffer.
func (f *Frame) Space() []byte { return f.buf[HeadroomBytes:] }

// SetLen declares the first n bytes of Space to be the frame. It panics when n
// is beyond MaxBytes.
func (f *Frame) SetLen(n int) {
	if uint(n) > MaxBytes {
		panic("frame: SetLen beyond MaxBytes")
	}
	f.off, f.end = HeadroomBytes, HeadroomBytes+n
}

// WithHeadroom is the frame preceded by the n bytes before it, for a header
// that must lie adjacent to it. n is at most HeadroomBytes.
func (f *Frame) WithHeadroom(n int) []byte { return f.buf[f.off-n : f.end] }

// SpaceWithHeadroom is Space preceded by n bytes, for a receive that gets a
// header in front of the frame.
func (f *Frame) SpaceWithHeadroom(n int) []byte { return f.buf[HeadroomBytes-n:] }

// Set makes the frame a copy of b, with no metadata. It panics when b is longer
// than MaxBytes.
func (f *Frame) Set(b []byte) {
	f.Reset()
	f.SetLen(len(b))
	copy(f.Bytes(), b)
}

// Clone copies a borrowed frame into an owned one.
func (f *Frame) Clone() *Frame {
	c := New()
	c.Set(f.Bytes())
	c.VNet, c.Peer, c.Hash, c.Ingress, c.Drop = f.VNet, f.Peer, f.Hash, f.Ingress, f.Drop
	return c
}

// Batch is a fixed set of frames that one worker receives into and forwards
// from. Its frames are borrowed from it until the next Reset.
type Batch struct {
	frames []Frame
	n      int
	bytes  int
}

// NewBatch makes a batch of n frames in one allocation of buffers. Memory is
// touched, and so taken, only as frames arrive.
func NewBatch(n int) *Batch {
	b := &Batch{frames: make([]Frame, n)}
	buf := make([]byte, n*bufferBytes)
	for i := range b.frames {
		b.frames[i].buf = buf[i*bufferBytes : (i+1)*bufferBytes : (i+1)*bufferBytes]
		b.frames[i].Reset()
	}
	return b
}

// Reset empties the batch: every frame borrowed from it ends here.
func (b *Batch) Reset() { b.n, b.bytes = 0, 0 }

// Len is the number of frames received.
func (b *Batch) Len() int { return b.n }

// At is frame i, 0 <= i < Len, borrowed.
func (b *Batch) At(i int) *Frame { return &b.frames[i] }

// Full reports whether a receive loop should stop: no frame is left, or
// BatchBytes have been gathered.
func (b *Batch) Full() bool { return b.n == len(b.frames) || b.bytes >= BatchBytes }

// Next is the next empty frame to receive into, already Reset, or nil when no
// frame is left (BatchBytes does not count here). It is part of the batch only after Keep.
func (b *Batch) Next() *Frame {
	if b.n == len(b.frames) {
		return nil
	}
	f := &b.frames[b.n]
	f.Reset()
	return f
}

// Keep adds the frame that Next returned last to the batch.
func (b *Batch) Keep() {
	b.bytes += b.frames[b.n].Len()
	b.n++
}
