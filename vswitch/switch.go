package vswitch

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vswitch/internal/uptime"
	"vswitch/internal/wire"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
)

// Config is what a switch is built from.
type Config struct {
	// Workers is the number of forwarding threads, 1 to 64; zero means 1.
	Workers  int
	FIB      *fib.Table
	Flows    *flow.Table
	Services Services
	// Held keeps the switch from taking any frame until Start: ports are added, but
	// not listened to. A frame that came in before the port it is for is there would
	// be answered as if there were none.
	Held bool
	// NoPolling makes idle workers block at once: less power, more latency.
	NoPolling bool
	// QueueDied is told of a queue whose device or socket is gone; it may call
	// RemovePort from another goroutine. Nil: nobody asks.
	QueueDied func(portName string, err error)
}

// Facts are what the switch must know of its node.
type Facts struct {
	// Routers are the node's router addresses, one a family at most: the source
	// of ICMP errors and of hairpin flows. Without one, that family sends neither.
	Routers []netip.Addr
	// TunnelPorts are UDP ports at which nodes accept tunnelled frames: a pod's
	// datagrams to them at a node's address are dropped, by way of a service too.
	TunnelPorts []uint16
	// LinkLocal are link-local destinations that pods reach as they do the world, such
	// as a cloud's metadata service. All others but the gateway's do not exist.
	LinkLocal []netip.Prefix
}

// facts are Facts as workers read them.
type facts struct {
	router4, router6 wire.Addr // zero: none
	tunnelPorts      []uint16
	linkLocal        []netip.Prefix
}

// reaches reports whether a link-local destination is one that pods may go to.
func (f *facts) reaches(a *wire.Addr) bool {
	for _, p := range f.linkLocal {
		if p.Contains(a.Netip()) {
			return true
		}
	}
	return false
}

// isTunnel reports whether a node would take what comes to a port for tunnelled
// frames.
func (f *facts) isTunnel(proto uint8, port uint16) bool {
	return proto == wire.ProtoUDP && slices.Contains(f.tunnelPorts, port)
}

func (f *facts) router(v6 bool) *wire.Addr {
	a := &f.router4
	if v6 {
		a = &f.router6
	}
	if *a == (wire.Addr{}) {
		return nil
	}
	return a
}

// Switch owns ports and workers. Its methods may be called from any goroutine.
type Switch struct {
	cfg     Config
	start   time.Time
	started time.Duration // what the machine's clock said at start
	workers []*worker
	// pollSlots is how many more workers may poll at this moment.
	pollSlots atomic.Int32
	facts     atomic.Pointer[facts]
	gateway   atomic.Pointer[port]       // the gateway port, when there is one
	tunnel    atomic.Pointer[port]       // the tunnel port, when there is one
	captures  atomic.Pointer[[]*Capture] // nil: none

	// ports is indexed by port id; nil where none is. Workers load it once per
	// batch; changes publish a copy.
	ports atomic.Pointer[[]*port]

	mu     sync.Mutex
	closed bool // guarded by mu, as is the writing of ports
	held   bool // guarded by mu: no port is listened to yet
	room   int  // guarded by mu: ports that every worker has room for
}

// New starts the workers of a switch without ports.
func New(cfg Config) (*Switch, error) {
	if cfg.Workers == 0 {
		cfg.Workers = 1
	}
	if cfg.Workers < 1 || cfg.Workers > 64 {
		return nil, fmt.Errorf("vswitch: %d workers, want 1 to 64", cfg.Workers)
	}
	if cfg.FIB == nil || cfg.Flows == nil || cfg.Services == nil {
		return nil, errors.New("vswitch: FIB, Flows and Services must be given")
	}
	up, err := uptime.Now()
	if err != nil {
		return nil, err
	}
	s := &Switch{cfg: cfg, start: time.Now(), started: up, held: cfg.Held}
	if !cfg.NoPolling {
		s.pollSlots.Store(int32(max(1, runtime.NumCPU()/2)))
	}
	s.facts.Store(&facts{})
	s.ports.Store(new([]*port))
	for i := range cfg.Workers {
		w, err := newWorker(s, i)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("vswitch: worker %d: %w", i, err), s.Close())
		}
		s.workers = append(s.workers, w)
		go w.run()
	}
	return s, nil
}

// tickLength is the unit of flow ages: coarse enough that one reading of the
// clock serves a whole wake-up.
const tickLength = 100 * time.Millisecond

// Tick is the clock that the flow table's ages are counted in: units of 100 ms since
// the machine was started (CLOCK_BOOTTIME), modulo 2^32, so that they mean the
// same to the process that maps the table after this one.
func (s *Switch) Tick() uint32 { return uint32((s.started + time.Since(s.start)) / tickLength) }

// TickNow is the same clock where there is no switch yet.
func TickNow() (uint32, error) {
	up, err := uptime.Now()
	return uint32(up / tickLength), err
}

// Workers is the number of workers: how many queues every port must have.
func (s *Switch) Workers() int { return len(s.workers) }

// SetFacts replaces what the switch knows of its node.
func (s *Switch) SetFacts(f Facts) {
	n := &facts{tunnelPorts: slices.Clone(f.TunnelPorts), linkLocal: slices.Clone(f.LinkLocal)}
	for _, a := range f.Routers {
		if a.Is4() {
			n.router4 = wire.AddrFrom(a)
		} else {
			n.router6 = wire.AddrFrom(a)
		}
	}
	s.facts.Store(n)
}

// Settle waits until every frame that workers had in hand when it was called has been
// decided. Whoever takes something away that a first packet could be given, an
// endpoint say, settles before he looks for the flows that were given it: a
// worker that had it just before has installed its flow by then.
func (s *Switch) Settle() { s.do(func(*worker) {}) }

// do has every worker run fn, each for itself and all at the same time, and waits for
// them: as long as the slowest takes to wake up, rather than one after the other.
func (s *Switch) do(fn func(*worker)) {
	waits := make([]func(), len(s.workers))
	for i, w := range s.workers {
		waits[i] = w.begin(func() { fn(w) })
	}
	for _, wait := range waits {
		wait()
	}
}

// AddPort opens a port to traffic and returns its id, the index of its next hop
// in the FIB. It takes the queues, also when it fails.
func (s *Switch) AddPort(c PortConfig) (uint32, error) {
	if err := c.validate(len(s.workers)); err != nil {
		return 0, errors.Join(fmt.Errorf("vswitch: add port %q: %w", c.Name, err), newPort(0, &c).closeQueues())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.publish(&c)
	if err == nil && !s.held {
		err = s.startPolling(p)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("vswitch: add port %q: %w", c.Name, err), newPort(0, &c).closeQueues())
	}
	return p.id, nil
}

// publish puts a port in the first free place of the table. Callers hold mu.
func (s *Switch) publish(c *PortConfig) (*port, error) {
	if s.closed {
		return nil, errors.New("the switch is closed")
	}
	old := *s.ports.Load()
	id := len(old)
	for i, p := range old {
		if p == nil {
			id = min(id, i)
		} else if p.name == c.Name {
			return nil, errors.New("a port of that name exists")
		}
	}
	ports := slices.Clone(old)
	if id == len(ports) {
		ports = append(ports, nil)
	}
	p := newPort(uint32(id), c)
	ports[id] = p
	if len(ports) > s.room { // for as many again: the next ones need not ask
		s.room = 2 * len(ports)
		s.do(func(w *worker) { w.makeRoom(s.room) })
	}
	s.ports.Store(&ports)
	switch p.kind {
	case PortGateway:
		s.gateway.Store(p)
	case PortTunnel:
		s.tunnel.Store(p)
	}
	return p, nil
}

// Start begins to take frames from the ports of a switch that was made Held. What
// came meanwhile waits in their queues.
func (s *Switch) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held || s.closed {
		return nil
	}
	s.held = false
	var errs []error
	for _, p := range *s.ports.Load() {
		if p == nil {
			continue
		}
		if err := s.startPolling(p); err != nil {
			errs = append(errs, fmt.Errorf("vswitch: start port %q: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// startPolling lets each worker wait on its queue. Callers hold mu.
func (s *Switch) startPolling(p *port) error {
	errs := make([]error, len(s.workers))
	s.do(func(w *worker) { errs[w.id] = w.poll(p, p.queues[w.id]) })
	err := errors.Join(errs...)
	if err != nil {
		s.withdraw(p)
	}
	return err
}

// withdraw takes a port from every worker: on return none uses it or its queues.
// Callers hold mu.
func (s *Switch) withdraw(p *port) {
	ports := slices.Clone(*s.ports.Load())
	ports[p.id] = nil
	s.gateway.CompareAndSwap(p, nil)
	s.tunnel.CompareAndSwap(p, nil)
	s.ports.Store(&ports)
	s.do(func(w *worker) { w.forget(p) })
}

// RemovePort closes a port and its queues. When it returns, no frame enters or
// leaves by it. Routes to it are the caller's to remove first. A switch that is closed
// has removed all.
func (s *Switch) RemovePort(id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	ports := *s.ports.Load()
	if int(id) >= len(ports) || ports[id] == nil {
		return fmt.Errorf("vswitch: remove port %d: no such port", id)
	}
	p := ports[id]
	s.withdraw(p)
	if err := p.closeQueues(); err != nil {
		return fmt.Errorf("vswitch: remove port %q: %w", p.name, err)
	}
	return nil
}

// PortStats pairs a port with its counters.
type PortStats struct {
	ID   uint32
	Kind PortKind
	Name string
	Stats
}

// Stats lists every port's counters.
func (s *Switch) Stats() []PortStats {
	var all []PortStats
	for _, p := range *s.ports.Load() {
		if p != nil {
			all = append(all, PortStats{ID: p.id, Kind: p.kind, Name: p.name, Stats: p.stats()})
		}
	}
	return all
}

// Close stops the workers, then closes every port. It may be called twice.
func (s *Switch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for _, w := range s.workers {
		w.stop()
	}
	s.endCaptures()
	var errs []error
	for _, p := range *s.ports.Load() {
		if p != nil {
			errs = append(errs, p.closeQueues())
		}
	}
	s.ports.Store(new([]*port))
	return errors.Join(errs...)
}
