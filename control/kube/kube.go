// Package kube has Kubernetes' API server for a control plane: what it holds comes
// to a node as a control.Sink hears it, and what a node must say of itself is
// written there.
//
// It reads Nodes, Services, EndpointSlices, and the Pods of its own node; of each
// only what is used is kept (trim.go). It writes annotations of its own Node, by
// which other nodes reach it, and Events about what can't be done as asked. It
// allocates nothing: pod CIDRs are kube-controller-manager's, service addresses the
// API server's, load balancers' a cloud controller's.
//
// Losing the API server is normal: what was heard stays and what is to be written
// waits. A list that lacks more than half of what was known of a kind is doubted: what
// it lacks is kept for a while, in case the list was the mistake.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

// Config is what a Source works with. Zero values mean the defaults named.
type Config struct {
	// Kubeconfig is a file that says where the API server is and who asks; empty: a
	// pod's service account.
	Kubeconfig string
	// APIServer is the API server's URL, in the place of the one that either says.
	// A pod's is a service address, which the node itself provides.
	APIServer string
	Node      string // this node
	// Names says that names of headless services are asked for here: their slices are
	// read too.
	Names bool
	// Known are the objects of before this process, EndpointSlices as *control.Slice. Nil:
	// none.
	Known func(control.Kind) []control.Object

	Spread time.Duration // an Event is written within this; 5 s
	Grace  time.Duration // how long what a list lacks is kept, if it lacks more than half; 30 s
	Log    *slog.Logger  // nil: slog.Default()
}

// Numbers we chose.
const (
	defaultGrace = 30 * time.Second
	// requestTimeout bounds a request that is not a list or a watch.
	requestTimeout = 5 * time.Second
	// pauseMin and pauseMax bound the wait before a request is made again. All nodes
	// of a cluster come back at once when its API server does.
	pauseMin, pauseMax = 200 * time.Millisecond, 10 * time.Second
)

// Source is the API server as package node needs it. Its methods may be called from
// any goroutine.
type Source struct {
	cfg    Config
	log    *slog.Logger
	client *client

	claimed chan struct{} // closed once ClaimNode has succeeded
	publish chan struct{} // holds a token when the Node may lack what this node says
	doubt   chan struct{} // holds a token when something new is doubted
	told    chan control.Problem
	failed  chan error // has room for the first error that ends Run

	mu       sync.Mutex // guards all below, and serialises calls of the sink
	sink     control.Sink
	synced   bool // a full list of all kinds has gone to the sink
	away     bool // as last told to the sink
	claim    *control.Claim
	mirrors  map[control.Kind]*mirror
	attached map[control.Key]*corev1.Pod // this node's pods as the node knows them
}

// New makes a source. It does not wait for the API server to answer.
func New(cfg Config) (*Source, error) {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.Spread == 0 {
		cfg.Spread = defaultSpread
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c, err := newClient(&cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{
		cfg: cfg, log: cfg.Log, client: c,
		claimed: make(chan struct{}), publish: make(chan struct{}, 1), doubt: make(chan struct{}, 1),
		told: make(chan control.Problem, maxTold), failed: make(chan error, 1),
		mirrors: map[control.Kind]*mirror{}, attached: map[control.Key]*corev1.Pod{},
	}
	for _, r := range resources(&cfg) {
		s.mirrors[r.kind] = newMirror(s, r)
	}
	return s, nil
}

// Run tells sink what the API server holds and comes to hold, and keeps what this
// node says there, until ctx ends. It returns an error if the pod CIDRs of this node
// became others, otherwise ctx's.
func (s *Source) Run(ctx context.Context, sink control.Sink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.sink = sink
	for _, p := range s.attached {
		sink.Update([]control.Object{s.merged(p)}, nil)
	}
	s.mu.Unlock()

	var loops sync.WaitGroup
	for _, m := range s.mirrors {
		loops.Go(func() { m.run(ctx) })
	}
	loops.Go(func() { s.publishNode(ctx) })
	loops.Go(func() { s.believe(ctx) })
	loops.Go(func() { s.tellAll(ctx) })
	select {
	case <-ctx.Done():
	case err := <-s.failed:
		cancel(err)
	}
	loops.Wait()

	s.mu.Lock()
	s.sink = nil
	s.mu.Unlock()
	return context.Cause(ctx)
}

// Close ends the connections. Run must have returned.
func (s *Source) Close() error {
	s.client.close()
	return nil
}

// fail ends Run, unless something else has.
func (s *Source) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// reachable tells the sink and the log when the API server goes and comes.
func (s *Source) reachable(ok bool, err error) {
	if errors.Is(err, context.Canceled) {
		return // it was this node that hung up
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sink == nil || s.away == !ok {
		return
	}
	s.away = !ok
	if ok {
		s.log.Info("API server is back")
	} else {
		s.log.Warn("API server is away; keeping the last good state", "err", err)
	}
	s.sink.Reachable(ok)
}

// poke leaves a token in a channel that has room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits before something is tried again: longer with every attempt. It returns
// false when ctx ended.
func pause(ctx context.Context, attempt int) bool {
	t := time.NewTimer(min(pauseMin<<min(attempt, 10), pauseMax))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
