package etcd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

// publisher writes the records of this node's pods. What the node says goes into a
// map at once, to the sink at once, and to the store when that can be: a pod is an
// endpoint of its node's services while the store is away, and ADD never waits.
//
// About its own pods the node knows best, so once they are loaded what the store
// says of them is not heard.
type publisher struct {
	s    *Store
	wake chan struct{} // holds a token when there is something to write

	mu     sync.Mutex
	want   map[control.Key]*corev1.Pod // guarded by mu, as is all below
	dirty  map[control.Key]bool        // to be written or deleted
	loaded bool                        // want is complete: what is not in it is stale
	resync bool                        // the store's records are to be compared with want
}

func (p *publisher) init(s *Store) {
	p.s = s
	p.wake = make(chan struct{}, 1)
	p.want = map[control.Key]*corev1.Pod{}
	p.dirty = map[control.Key]bool{}
	p.resync = true
}

// LoadPods gives the interfaces that exist on this node, once, at start; only then
// are records of this node's that are not among them removed.
func (s *Store) LoadPods(pods []*corev1.Pod) {
	p := &s.pods
	puts := make([]control.Object, len(pods))
	for i, pod := range pods {
		puts[i] = pod
	}
	p.change(puts, nil, func() {
		for _, pod := range pods {
			p.want[control.KeyOf(pod)] = pod
		}
		p.loaded, p.resync = true, true
	})
	s.startOver() // what the store said of this node's pods until now is no longer heard
}

// PublishPod never waits for the store: the change goes to the sink at once, and is
// kept and written to the store when it can be.
func (s *Store) PublishPod(pod *corev1.Pod) {
	key := control.KeyOf(pod)
	s.pods.change([]control.Object{pod}, nil, func() {
		s.pods.want[key] = pod
		s.pods.dirty[key] = true
	})
}

// UnpublishPod takes a pod back, as PublishPod gives it.
func (s *Store) UnpublishPod(key control.Key) {
	s.pods.change(nil, []control.Key{key}, func() {
		delete(s.pods.want, key)
		s.pods.dirty[key] = true
	})
}

// change makes a change of the map and tells it to the sink, in one order for both.
func (p *publisher) change(puts []control.Object, deletes []control.Key, f func()) {
	p.s.sinkMu.Lock()
	p.mu.Lock()
	f()
	p.mu.Unlock()
	if p.s.sink != nil {
		p.s.sink.Update(puts, deletes)
	}
	p.s.sinkMu.Unlock()
	p.poke()
}

func (p *publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// again has the store's records compared with what is wanted: it may have lost them.
func (p *publisher) again() {
	p.mu.Lock()
	p.resync = true
	p.mu.Unlock()
	p.poke()
}

// attach hands a new sink what is known of this node's pods.
func (p *publisher) attach() {
	p.s.tell(func(sink control.Sink) { sink.Update(p.merge(nil), nil) })
}

// owns reports whether what the store says of key is not to be heard.
func (p *publisher) owns(key control.Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loaded && key.Kind == control.KindPod && key.Scope == p.s.cfg.Node
}

// merge puts this node's own word on its pods in the place of the store's.
func (p *publisher) merge(objs []control.Object) []control.Object {
	objs = slices.DeleteFunc(objs, func(o control.Object) bool { return p.owns(control.KeyOf(o)) })
	p.mu.Lock()
	defer p.mu.Unlock()
	for pod := range maps.Values(p.want) {
		objs = append(objs, pod)
	}
	return objs
}

// run writes what waits, once the node has its claim.
func (p *publisher) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.s.claimed:
	}
	for attempt := 0; ctx.Err() == nil; {
		if err := p.flush(ctx); err != nil {
			if ctx.Err() == nil && !errors.Is(err, control.ErrUnavailable) {
				p.s.log.Warn("records of pods not written; retrying", "err", err)
			}
			pause(ctx, attempt)
			attempt++
			continue
		}
		attempt = 0
		wait(ctx, gathering)
		select {
		case <-ctx.Done():
		case <-p.wake:
		}
	}
	return nil
}

const (
	// mostAtOnce is how many records one transaction writes: etcd takes 128 operations in
	// one unless it is told otherwise (--max-txn-ops).
	mostAtOnce = 100
	// gathering is between two transactions: pods that come together are written together,
	// which is 2 ms of the store's CPU time for all rather than for each. One that comes
	// alone is written at once.
	gathering = 50 * time.Millisecond
)

func (p *publisher) flush(ctx context.Context) error {
	if err := p.compare(ctx); err != nil {
		return err
	}
	for {
		p.mu.Lock()
		keys := slices.Collect(maps.Keys(p.dirty))
		p.mu.Unlock()
		if len(keys) == 0 {
			return nil
		}
		for some := range slices.Chunk(keys, mostAtOnce) {
			if err := p.write(ctx, some); err != nil {
				return err
			}
		}
	}
}

// compare marks what the store has otherwise than it should.
func (p *publisher) compare(ctx context.Context) error {
	p.mu.Lock()
	resync := p.resync
	p.resync = false
	p.mu.Unlock()
	if !resync {
		return nil
	}
	rctx, cancel := p.s.request(ctx)
	defer cancel()
	r, err := p.s.client.Get(rctx, p.s.kindPrefix(control.KindPod)+p.s.cfg.Node+"/", clientv3.WithPrefix())

	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.resync = true
		return p.s.wrap(err)
	}
	stored := map[control.Key]string{}
	for _, kv := range r.Kvs {
		if key, ok := p.s.parseKey(string(kv.Key)); ok {
			stored[key] = string(kv.Value)
		}
	}
	for key, pod := range p.want {
		if value, err := encode(pod); err == nil && stored[key] != value {
			p.dirty[key] = true
		}
		delete(stored, key)
	}
	for key := range stored {
		if p.loaded {
			p.dirty[key] = true
		}
	}
	return nil
}

// write makes the store's records of some pods what they should be, on condition that
// the node's claim still stands.
func (p *publisher) write(ctx context.Context, keys []control.Key) error {
	p.mu.Lock()
	pods := make([]*corev1.Pod, len(keys))
	for i, key := range keys {
		pods[i] = p.want[key]
	}
	p.mu.Unlock()

	ops := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		if pods[i] == nil {
			ops[i] = clientv3.OpDelete(p.s.objectKey(key))
			continue
		}
		value, err := encode(pods[i])
		if err != nil {
			return err
		}
		ops[i] = clientv3.OpPut(p.s.objectKey(key), value)
	}
	c := p.s.currentClaim()
	rctx, cancel := p.s.request(ctx)
	defer cancel()
	r, err := p.s.client.Txn(rctx).If(unchanged(p.s.key("nodes", c.Node), c.revision)).Then(ops...).Commit()
	if err != nil {
		return p.s.wrap(err)
	}
	if !r.Succeeded {
		return errors.New("this node's record changed; claiming it anew first")
	}
	p.mu.Lock()
	for i, key := range keys {
		if p.want[key] == pods[i] { // not changed meanwhile
			delete(p.dirty, key)
		}
	}
	p.mu.Unlock()
	return nil
}
