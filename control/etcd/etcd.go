// Package etcd keeps a cluster's objects in etcd (v3 API) and is how its nodes
// find each other.
//
// It reads and writes records and decides nothing about them; what an object may
// say and what it gets is package control's. Every write that must not race is
// one transaction. Losing the store is normal: reads fail with
// control.ErrUnavailable, what this node has to say waits, and what it heard
// stays.
//
// Keys, below a prefix:
//
//	cluster                      what all nodes must agree on
//	nodes/NAME                   v1.Node; a claim, never leased
//	leases/NAME                  coordination/v1 Lease; leased, it is the node's life
//	silent/NAME                  since when a node has had no lease
//	pods/NODE/CONTAINER/IFNAME   v1.Pod, written by the node alone
//	services/NAMESPACE/NAME      v1.Service
//	endpointslices/NAMESPACE/NAME
//	guard/nodes, guard/services  changed with every allocation
//
// Allocation is optimistic: read everything of a kind and its guard at one
// revision, decide, and write on condition that the guard is as it was. Two nodes
// that allocate at once can't both succeed, whatever they chose.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
)

// Config is what a Store works with. Zero values mean the defaults named.
type Config struct {
	Endpoints    []string // URLs: http, https or unix, all of one scheme
	TLS          TLSFiles // for https
	Node         string   // this node
	ServiceCIDRs []netip.Prefix

	LoadBalancerCIDRs []netip.Prefix // LoadBalancers get their addresses from these; none: those of the nodes
	Prefix            string         // of all keys; "/vswitch/v1/"
	LeaseTTL          time.Duration  // how long a silent node counts as live; 10 s, whole seconds
	CIDRGrace         time.Duration  // how long a silent node keeps its pod CIDRs; 24 h
	Timeout           time.Duration  // of one request; 5 s
	Log               *slog.Logger   // nil: slog.Default()
}

func (c *Config) setDefaults() {
	if c.Prefix == "" {
		c.Prefix = "/vswitch/v1/"
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = 10 * time.Second
	}
	if c.CIDRGrace == 0 {
		c.CIDRGrace = 24 * time.Hour
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// reconnectMax bounds the wait between attempts to connect. gRPC's default of two
// minutes would outlast a lease many times over.
const reconnectMax = 2 * time.Second

// Store is a cluster's objects in etcd, as package node needs them. Its methods may be called from any goroutine.
type Store struct {
	cfg    Config
	client *clientv3.Client
	log    *slog.Logger

	claimed chan struct{} // closed once ClaimNode has succeeded
	relist  chan struct{} // holds a token when the mirror must start over
	pods    publisher
	narrow  atomic.Bool // transactions are of that size, not wide

	mu    sync.Mutex
	claim *claim // guarded by mu; nil until claimed

	sinkMu sync.Mutex // serialises calls of the sink
	sink   control.Sink
	away   bool // as last told to the sink
}

// claim is the node's claim as it stands in the store.
type claim struct {
	control.Claim
	revision int64  // of the node's record: a write of this node's is void if it changed
	cluster  string // id of the cluster it is part of
}

// New makes a store. It does not wait for it to answer.
func New(cfg Config) (*Store, error) {
	cfg.setDefaults()
	scheme, err := checkEndpoints(cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	cc := clientv3.Config{
		Endpoints:            cfg.Endpoints,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    cfg.LeaseTTL, // notices a peer that vanished without a word
		DialKeepAliveTimeout: cfg.Timeout,
		MaxCallSendMsgSize:   2 * wide.bytes, // the store says what is too much
		Logger:               zap.NewNop(),   // its news is ours to tell: Reachable, and errors of calls
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: cfg.Timeout,
		})},
	}
	if scheme == "https" {
		if cc.TLS, err = cfg.TLS.Client(); err != nil {
			return nil, err
		}
	}
	client, err := clientv3.New(cc)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	s := &Store{
		cfg: cfg, client: client, log: cfg.Log,
		claimed: make(chan struct{}), relist: make(chan struct{}, 1),
	}
	s.pods.init(s)
	return s, nil
}

// Close ends the connection. Run must have returned.
func (s *Store) Close() error { return s.client.Close() }

func checkEndpoints(endpoints []string) (scheme string, err error) {
	if len(endpoints) == 0 {
		return "", errors.New("store: no URL; want etcd=URL[,URL...]")
	}
	for i, e := range endpoints {
		s, rest, ok := strings.Cut(e, "://")
		if !ok || rest == "" || s != "http" && s != "https" && s != "unix" {
			return "", fmt.Errorf("store: URL %q; want http://HOST:PORT, https://HOST:PORT or unix:///PATH", e)
		}
		if i > 0 && s != scheme {
			return "", fmt.Errorf("store: URL %q beside one of scheme %s; want all of one scheme", e, scheme)
		}
		scheme = s
	}
	return scheme, nil
}

// Run watches the store into sink, keeps the node's lease alive and its records
// written, until ctx ends. It returns a *control.ConflictError if the node's claim
// was given to another, otherwise ctx's error.
//
// It joins three loops, each of which goes on by
// itself while the store is away: the mirror (what others say), the presence
// (this node's record and lease) and the publisher (this node's pods).
func (s *Store) Run(ctx context.Context, sink control.Sink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.sinkMu.Lock()
	s.sink = sink
	s.sinkMu.Unlock()
	s.pods.attach()

	var loops sync.WaitGroup
	for _, loop := range []func(context.Context) error{s.mirror, s.presence, s.pods.run} {
		loops.Go(func() {
			if err := loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	loops.Wait()

	s.sinkMu.Lock()
	s.sink = nil
	s.sinkMu.Unlock()
	return context.Cause(ctx)
}

// tell calls the sink, if there is one.
func (s *Store) tell(f func(control.Sink)) {
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	if s.sink != nil {
		f(s.sink)
	}
}

// reachable tells the sink and the log when the store goes and comes.
func (s *Store) reachable(ok bool, err error) {
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	if s.sink == nil || s.away == !ok {
		return
	}
	s.away = !ok
	if ok {
		s.log.Info("store is back")
	} else {
		s.log.Warn("store is away; keeping the last good state", "err", err)
	}
	s.sink.Reachable(ok)
}

func (s *Store) currentClaim() *claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claim
}

// request bounds one request in time.
func (s *Store) request(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.Timeout)
}

// wrap makes an error of etcd's one of control's.
func (s *Store) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: it is full (its quota is used up) and takes no writes: %v", control.ErrUnavailable, err)
	case errors.Is(err, context.Canceled):
		return err
	}
	code := status.Code(err)
	var etcdErr rpctypes.EtcdError
	if errors.As(err, &etcdErr) {
		code = etcdErr.Code()
	}
	if errors.Is(err, context.DeadlineExceeded) || code == codes.DeadlineExceeded || code == codes.Unavailable {
		return fmt.Errorf("%w (%s): %v", control.ErrUnavailable, strings.Join(s.cfg.Endpoints, ","), s.cause(err))
	}
	return fmt.Errorf("store: %w", err)
}

// cause finds out why a request took too long: the client waits for a connection
// and does not say what keeps it from having one. A request that does not wait is
// refused with the reason.
func (s *Store) cause(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	kv := etcdserverpb.NewKVClient(s.client.ActiveConnection())
	_, probe := kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(s.cfg.Prefix), CountOnly: true}, grpc.WaitForReady(false))
	if status.Code(probe) == codes.Unavailable {
		return errors.New(status.Convert(probe).Message())
	}
	return err
}

// final reports whether trying again can't help.
func final(err error) bool {
	var conflict *control.ConflictError
	var mismatch *control.MismatchError
	var invalid *control.InvalidError
	return errors.As(err, &conflict) || errors.As(err, &mismatch) || errors.As(err, &invalid)
}

// pause waits before a request is made again because the store did not answer:
// longer with every attempt, from 100 ms to reconnectMax. It returns false when
// ctx ended.
func pause(ctx context.Context, attempt int) bool {
	return wait(ctx, min(100*time.Millisecond<<min(attempt, 10), reconnectMax))
}

// yield waits before a transaction that was raced is tried again: a short random
// time, so that those who raced don't meet again. One of them has always won.
func yield(ctx context.Context, attempt int) bool {
	return wait(ctx, time.Duration(rand.Int64N(int64(5*time.Millisecond)<<min(attempt, 6))))
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
