package control

import (
	"log/slog"
	"slices"
	"time"

	"vswitch/vswitch/frame"
)

// Reconciler brings a Dataplane to a wanted State and keeps it there.
//
// It is a step function: Want and Sync say what is wanted, Step does what can be
// done now and says when to be called again. What it believes to be programmed is
// what the Dataplane confirmed. Of a key whose Put failed it believes that it may
// still hold what it held, in no form that is right: it is put again while it is
// wanted, and deleted once it is not. After a few failures it is deleted first, as
// it may stand in its own way, or with another key each in the other's.
//
// Three things keep a bad list from becoming an outage. Nothing is deleted until
// Sync has been called once. A Sync that would delete more than half of the
// tunnels or of the services holds those deletions for a grace, and forgets them
// if what was missing comes back. And whatever fails is tried again, each change
// with its own backoff. Deletions that make room for something wanted are exempt
// from the first two: it has the address already.
//
// Not safe for concurrent use.
type Reconciler struct {
	dp  Dataplane
	cfg ReconcilerConfig
	log *slog.Logger

	have, want State
	synced     bool

	held      map[any]bool // TunnelKey and ServiceKey whose deletion waits
	heldUntil time.Time

	failures map[any]failure // by TunnelKey and ServiceKey
}

type failure struct {
	count int
	wait  time.Duration
	next  time.Time
}

// deleteFirst is how many times a Put fails before what it replaces is deleted.
const deleteFirst = 3

// Defaults of ReconcilerConfig.
const (
	defaultGrace      = 30 * time.Second
	defaultBackoffMin = 100 * time.Millisecond
	defaultBackoffMax = 30 * time.Second
)

// NewReconciler makes a reconciler of an empty dataplane.
func NewReconciler(dp Dataplane, cfg ReconcilerConfig, log *slog.Logger) *Reconciler {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin = defaultBackoffMin
	}
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = defaultBackoffMax
	}
	if log == nil {
		log = slog.Default()
	}
	return &Reconciler{dp: dp, cfg: cfg, log: log, held: map[any]bool{}, failures: map[any]failure{}}
}

// Want wants a state: before the first Sync one that nobody confirmed yet, such as
// a snapshot's; after it, one that deltas led to. A deletion that a delta asked
// for is meant.
func (r *Reconciler) Want(s State) { r.want = s }

// Sync wants the state of a full list.
func (r *Reconciler) Sync(s State, now time.Time) {
	r.want, r.synced = s, true
	tunnels, services := r.missing()
	suspicious := 2*len(tunnels) > len(r.have.Tunnels) || 2*len(services) > len(r.have.Services)
	if !suspicious {
		clear(r.held)
		return
	}
	if len(r.held) == 0 {
		r.heldUntil = now.Add(r.cfg.Grace)
	}
	for _, k := range tunnels {
		r.held[k] = true
	}
	for _, k := range services {
		r.held[k] = true
	}
	r.log.Warn("list would remove more than half; holding deletions", "tunnels", len(tunnels), "services", len(services), "grace", r.cfg.Grace)
}

// missing are the keys programmed whose deletion could wait.
func (r *Reconciler) missing() (tunnels []TunnelKey, services []ServiceKey) {
	for _, c := range Diff(r.have, r.want) {
		switch {
		case c.Collides:
		case c.Op == DeleteTunnel:
			tunnels = append(tunnels, c.Tunnel.TunnelKey)
		case c.Op == DeleteService:
			services = append(services, c.Service.ServiceKey)
		}
	}
	return tunnels, services
}

// Holding reports whether deletions wait for a grace: the wanted state is then
// not one to be kept as last good.
func (r *Reconciler) Holding() bool { return len(r.held) > 0 }

// Settled reports whether the last full list has been seen and is programmed.
func (r *Reconciler) Settled() bool {
	return r.synced && len(r.failures) == 0 && len(Diff(r.have, r.want)) == 0
}

// Step makes every change that may be made at now and returns when there is more
// to do; the zero time means not before something else is wanted.
func (r *Reconciler) Step(now time.Time) (next time.Time) {
	if len(r.held) > 0 && !now.Before(r.heldUntil) {
		clear(r.held)
	}
	later := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	changes := Diff(r.have, r.want)
	for _, c := range changes {
		key := c.key()
		if c.deletes() && !c.Collides {
			if !r.synced {
				continue
			}
			if r.held[key] {
				later(r.heldUntil)
				continue
			}
		}
		if f, failed := r.failures[key]; failed && now.Before(f.next) {
			later(f.next)
			continue
		}
		if err := r.apply(c); err != nil {
			later(r.failed(c, now, err))
			continue
		}
		delete(r.failures, key)
	}
	r.forget(changes)
	return next
}

// forget drops failures and holds of keys that have nothing left to do.
func (r *Reconciler) forget(changes []Change) {
	if len(r.failures) == 0 && len(r.held) == 0 {
		return
	}
	open, deleting := map[any]bool{}, map[any]bool{}
	for _, c := range changes {
		open[c.key()] = true
		if c.deletes() {
			deleting[c.key()] = true
		}
	}
	for k := range r.failures {
		if !open[k] {
			delete(r.failures, k)
		}
	}
	for k := range r.held {
		if !deleting[k] {
			delete(r.held, k)
		}
	}
}

func (r *Reconciler) failed(c Change, now time.Time, err error) time.Time {
	f := r.failures[c.key()]
	if f.count++; f.count == 1 {
		r.log.Error("dataplane refused a change; retrying", "change", c.String(), "err", err)
	}
	f.wait = min(max(2*f.wait, r.cfg.BackoffMin), r.cfg.BackoffMax)
	f.next = now.Add(f.wait)
	r.failures[c.key()] = f
	return f.next
}

// apply makes one call and records what it did, or that it may have.
func (r *Reconciler) apply(c Change) error {
	if !c.deletes() && r.failures[c.key()].count >= deleteFirst {
		d := c
		d.Op = map[Op]Op{PutTunnel: DeleteTunnel, PutService: DeleteService}[c.Op]
		if err := r.apply(d); err != nil {
			return err
		}
	}
	var err error
	switch c.Op {
	case PutTunnel:
		if err = r.dp.PutTunnel(c.Tunnel); err != nil {
			c.Tunnel = r.doubtTunnel(c.Tunnel.TunnelKey)
		}
		r.have.Tunnels = upsert(r.have.Tunnels, c.Tunnel, func(t Tunnel) TunnelKey { return t.TunnelKey }, TunnelKey.compare)
	case PutService:
		if err = r.dp.PutService(c.Service); err != nil {
			c.Service = r.doubtService(c.Service.ServiceKey)
		}
		r.have.Services = upsert(r.have.Services, c.Service, func(s Service) ServiceKey { return s.ServiceKey }, ServiceKey.compare)
	case DeleteTunnel:
		if err = r.dp.DeleteTunnel(c.Tunnel.TunnelKey); err == nil {
			r.have.Tunnels = slices.DeleteFunc(r.have.Tunnels, func(t Tunnel) bool { return t.TunnelKey == c.Tunnel.TunnelKey })
		}
	case DeleteService:
		if err = r.dp.DeleteService(c.Service.ServiceKey); err == nil {
			r.have.Services = slices.DeleteFunc(r.have.Services, func(s Service) bool { return s.ServiceKey == c.Service.ServiceKey })
		}
	}
	return err
}

// doubtTunnel is what a key may hold after a Put that failed: the addresses and
// prefixes it had, and a MAC that no tunnel can have, so that it equals nothing.
func (r *Reconciler) doubtTunnel(key TunnelKey) Tunnel {
	t := Tunnel{TunnelKey: key}
	for i := range r.have.Tunnels {
		if r.have.Tunnels[i].TunnelKey == key {
			t = r.have.Tunnels[i]
		}
	}
	t.MAC = frame.Broadcast
	return t
}

// doubtService is the same for a service; no service has a negative affinity.
func (r *Reconciler) doubtService(key ServiceKey) Service {
	s := Service{ServiceKey: key}
	for i := range r.have.Services {
		if r.have.Services[i].ServiceKey == key {
			s = r.have.Services[i]
		}
	}
	s.Affinity = -1
	return s
}

func (c *Change) deletes() bool { return c.Op == DeleteTunnel || c.Op == DeleteService }

func (c *Change) key() any {
	if c.Op == PutTunnel || c.Op == DeleteTunnel {
		return c.Tunnel.TunnelKey
	}
	return c.Service.ServiceKey
}

func upsert[T, K any](list []T, item T, key func(T) K, compare func(K, K) int) []T {
	i, found := slices.BinarySearchFunc(list, key(item), func(t T, k K) int { return compare(key(t), k) })
	if found {
		list[i] = item
		return list
	}
	return slices.Insert(list, i, item)
}
