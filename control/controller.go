package control

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Self is what the controller must know of the node it serves.
type Self struct {
	Node         string
	Underlays    []netip.Addr   // a peer is reached over its first address of a family found here
	Zone         string         // where its record says none; empty: not known
	ClusterCIDRs []netip.Prefix // no service's outside address may lie in one
	ServiceCIDRs []netip.Prefix // nor in one of these; nor an endpoint: it would loop

	LoadBalancerCIDRs []netip.Prefix // from which the store gives LoadBalancers addresses; no endpoint may lie in one
	// Kubernetes says that Kubernetes' own controllers run. Then endpoints are what
	// EndpointSlices say and selectors select nothing here; and nodes keep no leases:
	// their pods' endpoints say themselves whether they are ready.
	Kubernetes bool

	NodesBalance     bool // a LoadBalancer without an address is served at those of the nodes
	AllowExternalIPs bool // spec.externalIPs are programmed

	// IsNameServer reports whether pods ask a server at an address: no service's
	// outside address may be one. Nil: none is known.
	IsNameServer func(netip.Addr) bool
}

// ControllerConfig configures a Controller. Self and Dataplane are required.
type ControllerConfig struct {
	Self      Self
	Dataplane Dataplane
	LastGood  LastGood     // what the next start begins with; nil: nothing is kept
	Log       *slog.Logger // nil: slog.Default()
	// Tell is called when an object begins to ask for something that is not done. It
	// must not wait. Nil: nobody is told but the log.
	Tell      func(Problem)
	Reconcile ReconcilerConfig
}

// ReconcilerConfig tunes a Reconciler. Zero values mean the defaults named.
type ReconcilerConfig struct {
	Grace      time.Duration // how long a list that wipes more than half is held; 30 s
	BackoffMin time.Duration // wait after a first failed change; 100 ms
	BackoffMax time.Duration // doubled up to this; 30 s
}

// Controller is a Sink that keeps a Dataplane at what the objects ask for. The
// source's calls only note what came; one goroutine, Run's, computes and calls
// the dataplane, so that a slow dataplane never holds up the source and many
// deltas cost one computation.
type Controller struct {
	cfg    ControllerConfig
	log    *slog.Logger
	wake   chan struct{} // holds one token when there is something new
	passed chan struct{} // closed when the first pass is done
	synced chan struct{} // closed when the first full list is programmed
	names  *Names

	mu      sync.Mutex
	objects *Objects
	changed bool    // since the last pass
	listed  bool    // a full list came since the last pass
	unsaved unsaved // since the saver was given something

	latency Histogram                // of changes
	awaited map[objectName]time.Time // changes the dataplane is to have, by when they happened; Run's
}

// NewController makes a controller; it does nothing until Run.
func NewController(cfg ControllerConfig) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Controller{
		cfg: cfg, log: cfg.Log,
		wake: make(chan struct{}, 1), passed: make(chan struct{}), synced: make(chan struct{}), awaited: map[objectName]time.Time{},
		objects: NewObjects(cfg.Self), names: newNames(),
	}
	c.objects.names = c.names
	return c
}

// Restore starts from the objects of the last good snapshot, before Run and
// before any source. Nothing is deleted on their word. This node's own pods are
// left out: it knows itself which still run.
func (c *Controller) Restore(objs []Object) {
	objs = slices.DeleteFunc(slices.Clone(objs), func(o Object) bool {
		pod, ok := o.(*corev1.Pod)
		return ok && pod.Spec.NodeName == c.cfg.Self.Node
	})
	c.change(func(o *Objects, now time.Time) {
		o.Reset(objs, now)
		c.toSave(func(u *unsaved) { u.reset(o.everything()) })
	})
}

// Reset implements Sink.
func (c *Controller) Reset(all []Object) {
	c.change(func(o *Objects, now time.Time) {
		o.Reset(all, now)
		c.listed = true
		c.toSave(func(u *unsaved) { u.reset(o.everything()) })
	})
}

// Update implements Sink.
func (c *Controller) Update(puts []Object, deletes []Key) {
	c.change(func(o *Objects, now time.Time) {
		o.Advance(now)
		for _, obj := range puts {
			o.Put(obj)
			c.toSave(func(u *unsaved) { u.note(KeyOf(obj), o.get(KeyOf(obj))) })
		}
		for _, k := range deletes {
			o.Delete(k)
			c.toSave(func(u *unsaved) { u.note(k, kept{}) })
		}
	})
}

// Reachable implements Sink.
func (c *Controller) Reachable(ok bool) {
	c.change(func(o *Objects, now time.Time) { o.SetReachable(ok, now) })
}

func (c *Controller) change(f func(*Objects, time.Time)) {
	c.mu.Lock()
	f(c.objects, time.Now())
	c.changed = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Resave has the last good objects written although nothing changed: for when the
// file has gone. It does not wait; before a store has answered nothing is written.
func (c *Controller) Resave() {
	c.change(func(o *Objects, _ time.Time) {
		c.toSave(func(u *unsaved) { u.reset(o.everything()) })
	})
}

// toSave notes what the saver has to be given. Callers hold mu.
func (c *Controller) toSave(note func(*unsaved)) {
	if c.cfg.LastGood != nil {
		note(&c.unsaved)
	}
}

// List returns the objects of a kind as last seen, sorted by key. It works while
// the store is away.
func (c *Controller) List(kind Kind) []Object {
	c.mu.Lock()
	objs := c.objects.list(kind)
	c.mu.Unlock()
	return inOrder(objs)
}

// Kept are the objects of a kind as the set keeps them, in any order: for a source to go
// on from. An EndpointSlice is a *Slice.
func (c *Controller) Kept(kind Kind) []Object {
	c.mu.Lock()
	objs := c.objects.list(kind)
	c.mu.Unlock()
	out := make([]Object, len(objs))
	for i, o := range objs {
		out[i] = o.stored()
	}
	return out
}

// Names is the zone of the cluster as DNS asks it, from the objects as last seen. It
// stays the same value, and may be used from any goroutine.
func (c *Controller) Names() *Names { return c.names }

// Live reports whether a node counts as live, see Objects.Live.
func (c *Controller) Live(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects.Live(node)
}

// Services returns the service ports as last computed, with their endpoints.
func (c *Controller) Services() []Service {
	c.mu.Lock()
	all := c.objects.services()
	c.mu.Unlock()
	return sortedServices(all)
}

// Problems returns what objects ask for that is not done, and why.
func (c *Controller) Problems() []Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects.Problems()
}

// Passed is closed once Run has made the dataplane what was known when it began.
func (c *Controller) Passed() <-chan struct{} { return c.passed }

// Synced is closed once a full list was seen and is programmed.
func (c *Controller) Synced() <-chan struct{} { return c.synced }

// Run reconciles until ctx ends, then saves once more. It returns ctx's error.
func (c *Controller) Run(ctx context.Context) error {
	rec := NewReconciler(c.cfg.Dataplane, c.cfg.Reconcile, c.log)
	known := map[Problem]bool{}
	var save saver
	save.start(c.cfg.LastGood, c.log)
	defer save.stop()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ; first = false {
		now := time.Now()
		next := c.pass(rec, known, now)
		if first {
			close(c.passed)
		}
		if rec.synced && !rec.Holding() {
			next = earliest(next, save.offer(c, now))
		}
		c.announce(rec)
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			if rec.synced && !rec.Holding() {
				save.last(c)
			}
			return ctx.Err()
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// pass computes what is wanted, if something changed, and reconciles.
func (c *Controller) pass(rec *Reconciler, known map[Problem]bool, now time.Time) time.Time {
	c.mu.Lock()
	deadline := c.objects.Deadline()
	if !deadline.IsZero() && !now.Before(deadline) {
		c.objects.Advance(now)
		c.changed = true
		deadline = c.objects.Deadline()
	}
	changed, listed := c.changed, c.listed
	c.changed, c.listed = false, false
	var want Delta
	var problems []Problem
	var triggered map[objectName]time.Time
	worse := false
	if changed {
		want = c.objects.Delta()
		triggered = c.objects.triggered
		if len(triggered) > 0 {
			c.objects.triggered = map[objectName]time.Time{}
		}
		if worse = c.objects.ProblemsChanged(); worse {
			problems = c.objects.Problems()
		}
	}
	c.mu.Unlock()

	rec.Want(want)
	if listed {
		rec.Sync(now)
	}
	next := rec.Step(now)
	c.observe(rec, triggered, time.Now())
	if worse {
		c.report(known, problems)
	}
	if !rec.Holding() {
		c.mu.Lock()
		c.objects.trimNames()
		c.mu.Unlock()
	}
	return earliest(next, deadline)
}

// report logs problems when they come, not as long as they stay.
func (c *Controller) report(known map[Problem]bool, problems []Problem) {
	current := make(map[Problem]bool, len(problems))
	for _, p := range problems {
		current[p] = true
		if !known[p] {
			c.log.Warn("object not fully programmed", "object", p.Object.String(), "err", p.Reason)
			if c.cfg.Tell != nil {
				c.cfg.Tell(p)
			}
		}
	}
	clear(known)
	for p := range current {
		known[p] = true
	}
}

func (c *Controller) announce(rec *Reconciler) {
	select {
	case <-c.synced:
	default:
		if rec.Settled() {
			close(c.synced)
		}
	}
}

// earliest is the earlier of two times of which zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

var _ Sink = (*Controller)(nil)
