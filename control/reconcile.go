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
// done now and says when to be called again. Each costs what there is to do: one
// change among 10,000 services is found without a look at the others. What it believes to be programmed is
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

	tunnels   goal[TunnelKey, Tunnel, tunnelClaim]
	services  goal[ServiceKey, Service, serviceClaim]
	synced    bool
	heldUntil time.Time // for deletions that are held
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
	return &Reconciler{
		dp: dp, cfg: cfg, log: log,
		tunnels:  newGoal((*Tunnel).claims, (*Tunnel).equal, TunnelKey.compare),
		services: newGoal((*Service).claims, (*Service).equal, ServiceKey.compare),
	}
}

// Want takes what changed of the wanted state: before the first Sync of one that
// nobody confirmed yet, such as a snapshot's; after it, of what changes of the
// objects led to. A deletion asked for so is meant.
func (r *Reconciler) Want(d Delta) {
	for _, k := range d.DeleteTunnels {
		r.tunnels.unwant(k)
	}
	for i := range d.PutTunnels {
		r.tunnels.unwant(d.PutTunnels[i].TunnelKey)
	}
	for i := range d.PutTunnels {
		r.tunnels.want(d.PutTunnels[i].TunnelKey, &d.PutTunnels[i])
	}
	for _, k := range d.DeleteServices {
		r.services.unwant(k)
	}
	for _, s := range d.PutServices {
		r.services.unwant(s.ServiceKey)
	}
	for _, s := range d.PutServices {
		r.services.want(s.ServiceKey, s)
	}
}

// Sync says that what is wanted now is what a full list leads to.
func (r *Reconciler) Sync(now time.Time) {
	r.synced = true
	tunnels, services := r.missing()
	if 2*len(tunnels) <= r.tunnels.have && 2*len(services) <= r.services.have {
		r.release()
		return
	}
	if !r.Holding() {
		r.heldUntil = now.Add(r.cfg.Grace)
	}
	r.tunnels.hold(tunnels)
	r.services.hold(services)
	r.log.Warn("list would remove more than half; holding deletions", "tunnels", len(tunnels), "services", len(services), "grace", r.cfg.Grace)
}

func (r *Reconciler) release() {
	r.tunnels.release()
	r.services.release()
}

// changes are what is left to do, in order.
func (r *Reconciler) changes() []Change {
	var c changes
	for _, k := range r.tunnels.open() {
		it := r.tunnels.pending[k]
		c.tunnel(it.have, it.want, r.tunnels.holder)
	}
	for _, k := range r.services.open() {
		it := r.services.pending[k]
		c.service(it.have, it.want, r.services.holder)
	}
	return c.inOrder()
}

// missing are the keys programmed whose deletion could wait.
func (r *Reconciler) missing() (tunnels []TunnelKey, services []ServiceKey) {
	for _, c := range r.changes() {
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
func (r *Reconciler) Holding() bool { return r.tunnels.holding() || r.services.holding() }

// Settled reports whether the last full list has been seen and is programmed.
func (r *Reconciler) Settled() bool {
	return r.synced && len(r.tunnels.pending) == 0 && len(r.services.pending) == 0
}

// Step makes every change that may be made at now and returns when there is more
// to do; the zero time means not before something else is wanted.
func (r *Reconciler) Step(now time.Time) (next time.Time) {
	if !now.Before(r.heldUntil) {
		r.release()
	}
	later := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	one := func(c Change) {
		held, failed := r.standing(&c)
		if c.deletes() && !c.Collides {
			if !r.synced {
				return
			}
			if held {
				later(r.heldUntil)
				return
			}
		}
		if failed.count > 0 && now.Before(failed.next) {
			later(failed.next)
			return
		}
		err := r.apply(&c, *failed)
		if _, failed = r.standing(&c); err == nil { // where the item stands now
			*failed = failure{}
			return
		}
		later(r.failed(failed, &c, now, err))
	}
	all := r.changes()
	for len(all) > 0 {
		n := 1
		if all[0].ofTunnel() {
			if n = slices.IndexFunc(all, func(c Change) bool { return !c.ofTunnel() }); n < 0 {
				n = len(all)
			}
		}
		if n == 1 {
			one(all[0])
		} else {
			r.dp.Together(func() {
				for _, c := range all[:n] {
					one(c)
				}
			})
		}
		all = all[n:]
	}
	return next
}

// standing is whether the change of a key is held, and what its last came to.
func (r *Reconciler) standing(c *Change) (held bool, failed *failure) {
	if c.Op == PutTunnel || c.Op == DeleteTunnel {
		if it := r.tunnels.items[c.Tunnel.TunnelKey]; it != nil {
			return it.held, &it.failed
		}
	} else if it := r.services.items[c.Service.ServiceKey]; it != nil {
		return it.held, &it.failed
	}
	return false, new(failure) // nothing is left of it
}

func (r *Reconciler) failed(f *failure, c *Change, now time.Time, err error) time.Time {
	if f.count++; f.count == 1 {
		r.log.Error("dataplane refused a change; retrying", "change", c.String(), "err", err)
	}
	f.wait = min(max(2*f.wait, r.cfg.BackoffMin), r.cfg.BackoffMax)
	f.next = now.Add(f.wait)
	return f.next
}

// apply makes one call and records what it did, or that it may have.
func (r *Reconciler) apply(c *Change, before failure) error {
	if !c.deletes() && before.count >= deleteFirst {
		d := *c
		d.Op = map[Op]Op{PutTunnel: DeleteTunnel, PutService: DeleteService}[c.Op]
		if err := r.apply(&d, before); err != nil {
			return err
		}
	}
	var err error
	switch c.Op {
	case PutTunnel:
		k, has := c.Tunnel.TunnelKey, &c.Tunnel
		if err = r.dp.PutTunnel(c.Tunnel); err != nil {
			has = r.doubtTunnel(k)
		}
		r.tunnels.programmed(k, has)
	case PutService:
		k, has := c.Service.ServiceKey, r.services.items[c.Service.ServiceKey].want
		if err = r.dp.PutService(c.Service); err != nil {
			has = r.doubtService(k)
		}
		r.services.programmed(k, has)
	case DeleteTunnel:
		if err = r.dp.DeleteTunnel(c.Tunnel.TunnelKey); err == nil {
			r.tunnels.programmed(c.Tunnel.TunnelKey, nil)
		}
	case DeleteService:
		if err = r.dp.DeleteService(c.Service.ServiceKey); err == nil {
			r.services.programmed(c.Service.ServiceKey, nil)
		}
	}
	return err
}

// doubtTunnel is what a key may hold after a Put that failed: the addresses and
// prefixes it had, and a MAC that no tunnel can have, so that it equals nothing.
func (r *Reconciler) doubtTunnel(key TunnelKey) *Tunnel {
	t := Tunnel{TunnelKey: key}
	if it := r.tunnels.items[key]; it != nil && it.have != nil {
		t = *it.have
	}
	t.MAC = frame.Broadcast
	return &t
}

// doubtService is the same for a service; no service has a negative affinity.
func (r *Reconciler) doubtService(key ServiceKey) *Service {
	s := Service{ServiceKey: key}
	if it := r.services.items[key]; it != nil && it.have != nil {
		s = *it.have
	}
	s.Affinity = -1
	return &s
}

func (c *Change) ofTunnel() bool { return c.Op == PutTunnel || c.Op == DeleteTunnel }

func (c *Change) deletes() bool { return c.Op == DeleteTunnel || c.Op == DeleteService }
