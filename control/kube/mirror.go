package kube

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"vswitch/control"
)

// mirror holds the objects of one kind as the API server has them, and tells the
// sink what changes. client-go's reflector feeds it: a list, then events, and a list
// again whenever the chain of events broke. It is the reflector's store itself; an
// informer's queue and cache between the two would hold everything a second time.
//
// What comes twice changes nothing, and what is older than what is held is not
// heard. Objects that a list lacks are gone, unless it lacks more than half of them
// (see doubted).
type mirror struct {
	s *Source
	resource

	// All below is guarded by s.mu.
	synced bool
	objs   map[control.Key]control.Object
	// gone are objects that were deleted since the last list, and at which version, so
	// that an event of before brings none back.
	gone map[control.Key]uint64
	// listed is the version of the last list: what happened before is in it.
	listed uint64
	// doubted are objects that a list lacked which lacked too many, and until when
	// they are kept. They are among objs.
	doubted map[control.Key]time.Time
}

// maxGone bounds what is remembered of deletions between two lists.
const maxGone = 4096

func newMirror(s *Source, r resource) *mirror {
	m := &mirror{s: s, resource: r, objs: map[control.Key]control.Object{}, gone: map[control.Key]uint64{}, doubted: map[control.Key]time.Time{}}
	if s.cfg.Known != nil && r.kind != control.KindPod { // of this node's pods the node knows itself
		for _, o := range s.cfg.Known(r.kind) {
			m.objs[control.KeyOf(o)] = o
		}
	}
	return m
}

// run mirrors until ctx ends.
func (m *mirror) run(ctx context.Context) {
	silent := logr.Discard() // its news is ours to tell
	ctx = klog.NewContext(ctx, silent)
	r := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := m.s.client.listAll(ctx, &m.resource, o)
			m.s.reachable(err == nil, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := m.s.client.watch(ctx, &m.resource, o)
			m.s.reachable(err == nil, err)
			return w, err
		},
	}, m.empty(), m, cache.ReflectorOptions{
		Logger: &silent, Name: m.kind.Plural(),
		Backoff: &wait.Backoff{Duration: pauseMin, Cap: pauseMax, Factor: 2, Jitter: 1, Steps: 10},
	})
	r.RunWithContext(ctx)
}

// Transformer implements cache.TransformingStore: what a list is made of need not be
// held whole until it is complete.
func (m *mirror) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if obj, ok := o.(runtime.Object); ok {
			return m.trim(obj), nil
		}
		return o, nil
	}
}

// Add implements cache.ReflectorStore.
func (m *mirror) Add(o any) error {
	if obj, ok := o.(runtime.Object); ok {
		m.s.mu.Lock()
		defer m.s.mu.Unlock()
		m.put(m.trim(obj))
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (m *mirror) Update(o any) error { return m.Add(o) }

// Delete implements cache.ReflectorStore.
func (m *mirror) Delete(o any) error {
	if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	if obj, ok := o.(runtime.Object); ok {
		m.s.mu.Lock()
		defer m.s.mu.Unlock()
		m.remove(m.trim(obj))
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (m *mirror) Replace(list []any, version string) error {
	fresh := make(map[control.Key]control.Object, len(list))
	for _, o := range list {
		if obj, ok := o.(runtime.Object); ok {
			t := m.trim(obj)
			fresh[control.KeyOf(t)] = t
		}
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.replace(fresh, parseVersion(version), time.Now())
	return nil
}

// Resync implements cache.ReflectorStore. There is nothing to say again.
func (m *mirror) Resync() error { return nil }

// put takes an event of an object that is there.
func (m *mirror) put(o control.Object) {
	key, at := control.KeyOf(o), version(o)
	old := m.objs[key]
	if at != 0 && (at <= m.listed || at <= m.gone[key] || old != nil && at < version(old)) {
		return // of before
	}
	delete(m.gone, key)
	delete(m.doubted, key)
	m.objs[key] = o
	if old == nil || !alike(old, o) {
		m.tell([]control.Object{o}, nil)
	}
}

// remove takes the event of a deletion.
func (m *mirror) remove(o control.Object) {
	key, at := control.KeyOf(o), version(o)
	old := m.objs[key]
	if at != 0 && (at <= m.listed || old != nil && at < version(old)) {
		return // of before: it was made anew since
	}
	if len(m.gone) >= maxGone {
		clear(m.gone)
	}
	m.gone[key] = max(at, m.gone[key])
	if old == nil {
		return
	}
	delete(m.objs, key)
	delete(m.doubted, key)
	m.tell(nil, []control.Key{key})
}

// replace takes a full list as of a version.
func (m *mirror) replace(fresh map[control.Key]control.Object, version uint64, now time.Time) {
	var missing []control.Key
	for key := range m.objs {
		if fresh[key] == nil {
			missing = append(missing, key)
		}
	}
	var puts []control.Object
	for key, o := range fresh {
		if old := m.objs[key]; old == nil || !alike(old, o) {
			puts = append(puts, o)
		}
	}
	doubted := map[control.Key]time.Time{}
	if 2*len(missing) > len(m.objs) {
		m.s.log.Warn("list lacks more than half of what was known; keeping that for a while",
			"kind", m.kind.Plural(), "known", len(m.objs), "missing", len(missing), "grace", m.s.cfg.Grace)
		for _, key := range missing {
			until, before := m.doubted[key]
			if !before {
				until = now.Add(m.s.cfg.Grace)
			}
			doubted[key] = until
			fresh[key] = m.objs[key]
		}
		missing = nil
		poke(m.s.doubt)
	}
	m.objs, m.doubted, m.gone, m.listed = fresh, doubted, map[control.Key]uint64{}, version
	if m.synced {
		m.tell(puts, missing)
		return
	}
	m.synced = true
	m.s.syncedOne()
}

// tell hands on what changed. This node's pods are told as their attachments' records.
func (m *mirror) tell(puts []control.Object, deletes []control.Key) {
	if m.kind == control.KindNode {
		m.s.lookAtOwnNode()
	}
	if m.s.sink == nil || !m.s.synced || len(puts)+len(deletes) == 0 {
		return
	}
	if m.kind == control.KindPod {
		puts, deletes = m.s.attachedAgain(puts, deletes), nil
	}
	m.s.sink.Update(puts, deletes)
}

// syncedOne hands everything over once all kinds have been listed. Callers hold mu.
func (s *Source) syncedOne() {
	for _, m := range s.mirrors {
		if !m.synced {
			return
		}
	}
	if s.synced || s.sink == nil {
		return
	}
	s.synced = true
	s.lookAtOwnNode()
	var all []control.Object
	for kind, m := range s.mirrors {
		if kind != control.KindPod {
			all = slices.AppendSeq(all, maps.Values(m.objs))
		}
	}
	for _, p := range s.attached {
		all = append(all, s.merged(p))
	}
	s.sink.Reset(all)
}

// believe deletes what was doubted for long enough.
func (s *Source) believe(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.doubt:
		case <-timer.C:
		}
		timer.Stop()
		if next := s.believeUntil(time.Now()); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// believeUntil deletes what was doubted until now, and says when there is more.
func (s *Source) believeUntil(now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mirrors {
		var gone []control.Key
		for key, until := range m.doubted {
			switch {
			case !now.Before(until):
				delete(m.doubted, key)
				delete(m.objs, key)
				gone = append(gone, key)
			case next.IsZero() || until.Before(next):
				next = until
			}
		}
		m.tell(nil, gone)
	}
	return next
}

// List implements what `vswitch apply` compares with: the objects as last heard.
func (s *Source) List(_ context.Context, kind control.Kind) ([]control.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mirrors[kind]
	if m == nil {
		return nil, nil
	}
	all := slices.Collect(maps.Values(m.objs))
	for i, o := range all {
		if s, ok := o.(*control.Slice); ok {
			all[i] = s.Object()
		}
	}
	return all, nil
}

// version is an object's resource version; 0 if it is none that can be compared
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions).
func version(o control.Object) uint64 { return parseVersion(o.GetResourceVersion()) }

func parseVersion(s string) uint64 {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// alike reports whether two records of an object say the same to those who use them:
// a kubelet's report of a node every few minutes has a version of its own.
func alike(a, b control.Object) bool {
	va, vb := a.GetResourceVersion(), b.GetResourceVersion()
	if va == vb && va != "" {
		return true
	}
	if s, ok := a.(*control.Slice); ok {
		return s.Alike(b.(*control.Slice))
	}
	c := b.DeepCopyObject().(control.Object)
	c.SetResourceVersion(va)
	return reflect.DeepEqual(a, c)
}

var (
	_ cache.TransformingStore = (*mirror)(nil)
)
