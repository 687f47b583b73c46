package vswitch

import (
	"fmt"
	"math/rand/v2"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// Tracing: what would become of a frame, without sending it. There is no second
// copy of the rules that could come to differ: the frame is forwarded, by the very
// code of the workers, through a stand-in of the switch. Its ports have the real ones'
// addresses and MTUs and queues that only keep what is sent; its flow table is a
// copy of those connections that could matter; the FIB is the real one, which
// forwarding only reads. So nothing of the switch changes.

// Traced is what would become of a frame.
type Traced struct {
	// Headers are the frame's as it enters. Meaningless if Drops says that they
	// can't be read.
	Headers wire.Headers
	// Sent are the frames that would leave, answers of the switch's own included.
	Sent []TracedFrame
	// Drops are the reasons that would be counted at the port: one that is followed
	// by an answer, or the one for which nothing is sent.
	Drops []drop.Reason
	// Before is the connection that the frame belongs to as the table has it now,
	// After as it would have it; nil: none.
	Before, After *flow.Info
	// Direction is the frame's in After.
	Direction flow.Direction
}

// TracedFrame is one frame that would leave.
type TracedFrame struct {
	Port     string
	Kind     PortKind
	Peer     uint32 // for the tunnel
	Ingress  bool   // marked as from outside the cluster (frame.Frame.Ingress)
	Headers  wire.Headers
	MTUBytes int // of the way it goes
}

// Trace says what would become of a frame that entered by a port, borrowed.
// services answers instead of the gateway and must remember nothing.
func (s *Switch) Trace(portName string, f *frame.Frame, services Services) (*Traced, error) {
	out := &Traced{}
	key := flow.Key{}
	if wire.Parse(f.Bytes(), &out.Headers) == drop.None && hasFlow(&out.Headers) {
		key = flow.KeyOf(&out.Headers)
	}
	flows, err := s.cfg.Flows.Excerpt(func(i *flow.Info) bool { return s.mayMatter(i, &out.Headers) })
	if err != nil {
		return nil, fmt.Errorf("vswitch: trace: %w", err)
	}
	defer flows.Close()
	stand, in := s.standIn(portName, flows, services)
	if in == nil {
		return nil, fmt.Errorf("vswitch: trace: no port %q", portName)
	}
	w := &worker{
		sw: stand, tick: s.Tick(), batch: frame.NewBatch(1),
		rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	}
	w.makeRoom(len(*stand.ports.Load()))

	if i, _, ok := flows.Find(&key); ok {
		out.Before = &i
	}
	own := w.batch.Next()
	own.Set(f.Bytes())
	own.VNet, own.Peer, own.Ingress = f.VNet, f.Peer, f.Ingress
	w.batch.Keep()
	w.forwardBatch(in)
	if i, dir, ok := flows.Find(&key); ok {
		out.After, out.Direction = &i, dir
	}
	for r := range in.counters[0].drops {
		if in.counters[0].drops[r].v.Load() != 0 {
			out.Drops = append(out.Drops, drop.Reason(r))
		}
	}
	for _, p := range *stand.ports.Load() {
		if p != nil {
			out.Sent = append(out.Sent, p.queues[0].(*tracedQueue).sent...)
		}
	}
	return out, nil
}

// mayMatter reports whether a connection can have to do with the frame: it names the
// sender's address, or that of the router, which stands in for a pod that reaches itself.
func (s *Switch) mayMatter(i *flow.Info, h *wire.Headers) bool {
	facts := s.facts.Load()
	for _, k := range [2]*flow.Key{&i.Orig, &i.Reply} {
		for _, a := range [2]*wire.Addr{&k.Src, &k.Dst} {
			if *a == h.Src || *a == h.Dst || *a == facts.router4 && a.Is4() || *a == facts.router6 && !a.Is4() {
				return true
			}
		}
	}
	return false
}

// standIn is a switch like s as far as forwarding can tell, and its port of that
// name, or nil.
func (s *Switch) standIn(portName string, flows *flow.Table, services Services) (stand *Switch, in *port) {
	stand = &Switch{cfg: Config{Workers: 1, FIB: s.cfg.FIB, Flows: flows, Services: services}, start: s.start, started: s.started}
	stand.facts.Store(s.facts.Load())
	real := *s.ports.Load()
	ports := make([]*port, len(real))
	for i, p := range real {
		if p == nil {
			continue
		}
		q := &port{
			id: p.id, kind: p.kind, name: p.name, mac: p.mac, addrs: p.addrs, mtuBytes: p.mtuBytes, paths: p.paths, owner: p.owner,
			counters: make([]counters, 1), answers: make([]limiter, 1), spares: make([]*spares, 1),
		}
		q.answers[0].tokens = answersBurst
		q.queues = []Queue{&tracedQueue{port: q}}
		ports[i] = q
		switch q.kind {
		case PortGateway:
			stand.gateway.Store(q)
		case PortTunnel:
			stand.tunnel.Store(q)
		}
		if q.name == portName {
			in = q
		}
	}
	stand.ports.Store(&ports)
	return stand, in
}

// tracedQueue keeps what is sent.
type tracedQueue struct {
	port *port
	sent []TracedFrame
}

func (q *tracedQueue) PollFD() int                { return -1 }
func (q *tracedQueue) Receive(*frame.Batch) error { return nil }
func (q *tracedQueue) Close() error               { return nil }

func (q *tracedQueue) Transmit(fs []*frame.Frame) {
	for _, f := range fs {
		t := TracedFrame{Port: q.port.name, Kind: q.port.kind, Peer: f.Peer, Ingress: f.Ingress, MTUBytes: q.port.mtuTo(f.Peer)}
		wire.Parse(f.Bytes(), &t.Headers)
		q.sent = append(q.sent, t)
	}
}
