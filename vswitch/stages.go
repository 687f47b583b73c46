package vswitch

import (
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// A batch goes through stages, each over all of its frames before the next begins:
//
//	parse    headers, and the hash of the tuple where a flow may be known by it
//	join     datagrams of a flow into super-frames, where the port's kernel takes them
//	warm     the cache lines that the lookups will want, all under way at once
//	forward  one decision a frame, in order; the frame is staged on its egress port
//	flush    what is staged, port by port
//
// One frame after the other would wait for memory twice a frame wherever there are
// more flows than a cache holds: with 100,000 in turn, stages save a third of the
// time (BenchmarkForwardFlows). With one flow, or one frame a batch, they cost what
// lies within the noise, some 5 ns a frame.
type stages struct {
	headers [frame.BatchFrames]wire.Headers
	joined  [frame.BatchFrames]bool      // the frame is now part of one before it
	hashes  [frame.BatchFrames]uint64    // of frames that may have a flow
	wanted  [frame.BatchFrames]uint64    // hashes, each once for frames of a flow in a row
	targets [frame.BatchFrames]wire.Addr // of wanted: where they go, if nothing rewrites them
}

// forwardBatch takes the batch, all of which came in by in, through its stages.
func (w *worker) forwardBatch(in *port) {
	n := w.batch.Len()
	if n == 0 {
		return
	}
	w.ports = *w.sw.ports.Load()
	w.facts = w.sw.facts.Load()
	if w.tap.captures = w.sw.captures.Load(); w.tap.captures != nil {
		w.tapIngress(in)
	}
	w.tendSpares(in)
	bytes, flows := w.parse(n)
	if in.joins && n > 1 {
		w.join(n)
	}
	w.warm(flows)
	w.forwardAll(in, n)
	w.flush(in)
	if w.tap.captures != nil {
		w.tapEnd()
	}
	// Counted last: who sees a frame counted sees all that came of it.
	c := &in.counters[w.id]
	c.ingressFrames.add(uint64(n))
	c.ingressBytes.add(uint64(bytes))
}

// parse reads the headers of n frames and adds up their lengths. It leaves in wanted
// and targets what warm is for, flows of them: a flow that comes in a train once.
func (w *worker) parse(n int) (bytes, flows int) {
	last := uint64(0)
	for i := range n {
		f, h := w.batch.At(i), &w.headers[i]
		w.joined[i] = false
		bytes += f.Len()
		if f.Drop != drop.None {
			continue
		}
		if f.Drop = wire.Parse(f.Bytes(), h); f.Drop != drop.None || !hasFlow(h) {
			continue
		}
		key := flow.KeyOf(h)
		hash := w.sw.cfg.Flows.Hash(&key)
		w.hashes[i] = hash
		if hash != last {
			w.wanted[flows], w.targets[flows] = hash, h.Dst
			last = hash
			flows++
		}
	}
	return bytes, flows
}

// join makes super-frames of datagrams that a pod sent one by one. The receiver's
// kernel passes one up its stack and cuts it at the socket, for a socket that
// asks (UDP_GRO) not even there: the train costs one lookup, one write, one pass. What
// may be joined is the coalescer's to say; it keeps the order within a flow.
//
// Without DF a datagram is left alone: one that is too large is cut, and a
// super-frame could not be.
func (w *worker) join(n int) {
	c := &w.coalescer
	for i := range n {
		f, h := w.batch.At(i), &w.headers[i]
		if f.Drop != drop.None || h.Proto != wire.ProtoUDP && !h.Fragment {
			continue
		}
		if w.joined[i] = c.Merge(f.Bytes(), h, &f.VNet, 0, false); !w.joined[i] && h.DontFragment {
			c.Open(f, h)
		}
	}
	c.Flush()
	for i := range n { // some have grown
		if f := w.batch.At(i); f.VNet.GSOType == frame.GSOUDPL4 && !w.joined[i] {
			w.headers[i].End = f.Len()
		}
	}
}

// warm prepares the lookups of several flows. One alone has nothing to wait for
// meanwhile.
func (w *worker) warm(flows int) {
	if flows > 1 {
		w.sw.cfg.Flows.Warm(w.wanted[:flows])
		w.sw.cfg.FIB.Warm(w.targets[:flows])
	}
}

// forwardAll decides the frames in order.
func (w *worker) forwardAll(in *port, n int) {
	for i := range n {
		if w.joined[i] {
			continue
		}
		f := w.batch.At(i)
		if f.Drop == drop.None {
			w.hash = w.hashes[i]
			f.Drop = w.forward(in, f, &w.headers[i])
		}
		if f.Drop != drop.None {
			w.lost(in, f, f.Drop)
		}
	}
}
