package control

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Self is what the controller must know of the node it serves.
type Self struct {
	Node         string
	Underlays    []netip.Addr   // a peer is reached over the first family both have
	ServiceCIDRs []netip.Prefix // no endpoint may lie in one: it would loop
}

// ControllerConfig configures a Controller. Self and Dataplane are required.
type ControllerConfig struct {
	Self      Self
	Dataplane Dataplane
	Save      func([]Object) error // keeps the last good objects for the next start; nil: not kept
	Log       *slog.Logger         // nil: slog.Default()
	Reconcile ReconcilerConfig
}

// ReconcilerConfig tunes a Reconciler. Zero values mean the defaults named.
type ReconcilerConfig struct {
	Grace      time.Duration // how long a list that wipes more than half is held; 30 s
	BackoffMin time.Duration // wait after a first failed change; 100 ms
	BackoffMax time.Duration // doubled up to this; 30 s
}

// Controller is a Sink that keeps a Dataplane at what the objects ask for.
type Controller struct{}

// NewController makes a controller; it does nothing until Run.
func NewController(cfg ControllerConfig) *Controller { return &Controller{} }

// Restore starts from the objects of the last good snapshot, before Run and
// before any source. Nothing is deleted on their word.
func (c *Controller) Restore(objs []Object) {}

// Run reconciles until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return nil }

// Reset implements Sink.
func (c *Controller) Reset(all []Object) {}

// Update implements Sink.
func (c *Controller) Update(puts []Object, deletes []Key) {}

// Reachable implements Sink.
func (c *Controller) Reachable(ok bool) {}

// List returns the objects of a kind as last seen, sorted by key. It works while
// the store is away.
func (c *Controller) List(kind Kind) []Object { return nil }

var _ Sink = (*Controller)(nil)
