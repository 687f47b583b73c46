package control

import (
	"maps"
	"slices"
	"time"
)

// goal is what is wanted of one kind of thing and what is programmed of it, key by
// key, with the list of keys for which the two differ: looking for work costs what
// there is to do, not what there is.
type goal[K comparable, V any, C comparable] struct {
	items   map[K]*item[V]
	pending map[K]*item[V] // where have and want differ
	wanted  map[C]K        // by whom something is wanted that only one can have
	have    int            // how many items are programmed
	most    int            // that were pending at once since pending was made

	claims  func(*V, func(C) bool)
	equal   func(a, b *V) bool
	compare func(a, b K) int
}

// item is one key. What is wanted and what is believed to be programmed are never
// changed in place.
type item[V any] struct {
	have, want *V
	held       bool // its deletion waits
	failed     failure
}

// failure is what a key's last change came to; the zero value: it worked.
type failure struct {
	count int
	wait  time.Duration
	next  time.Time
}

func newGoal[K comparable, V any, C comparable](claims func(*V, func(C) bool), equal func(a, b *V) bool, compare func(a, b K) int) goal[K, V, C] {
	return goal[K, V, C]{
		items: map[K]*item[V]{}, pending: map[K]*item[V]{}, wanted: map[C]K{},
		claims: claims, equal: equal, compare: compare,
	}
}

// unwant makes room for what keys want next: until want is called for one, nothing
// is wanted of it.
func (g *goal[K, V, C]) unwant(k K) {
	it := g.items[k]
	if it == nil || it.want == nil {
		return
	}
	g.claims(it.want, func(c C) bool {
		if g.wanted[c] == k {
			delete(g.wanted, c)
		}
		return true
	})
	it.want = nil
	g.look(k, it)
}

func (g *goal[K, V, C]) want(k K, v *V) {
	it := g.items[k]
	if it == nil {
		it = &item[V]{}
		g.items[k] = it
	}
	it.want = v
	g.claims(v, func(c C) bool { g.wanted[c] = k; return true })
	g.look(k, it)
}

// programmed notes what a key holds now; nil: nothing.
func (g *goal[K, V, C]) programmed(k K, v *V) {
	it := g.items[k]
	if it == nil { // deleted twice
		return
	}
	if it.have != nil {
		g.have--
	}
	if it.have = v; v != nil {
		g.have++
	}
	g.look(k, it)
}

// look puts an item where it belongs. What has nothing to do has no failure and no
// hold either.
func (g *goal[K, V, C]) look(k K, it *item[V]) {
	if it.want != nil {
		it.held = false
	}
	switch {
	case it.have == nil && it.want == nil:
		delete(g.items, k)
		delete(g.pending, k)
	case it.have != nil && it.want != nil && (it.have == it.want || g.equal(it.have, it.want)):
		it.failed = failure{}
		delete(g.pending, k)
	default:
		g.pending[k] = it
		g.most = max(g.most, len(g.pending))
	}
	if len(g.pending) == 0 && g.most > keptRoom { // walking a map costs what it once held
		g.pending, g.most = map[K]*item[V]{}, 0
	}
}

// open are the keys that have something to do, sorted.
func (g *goal[K, V, C]) open() []K { return slices.SortedFunc(maps.Keys(g.pending), g.compare) }

func (g *goal[K, V, C]) holder(c C) (K, bool) { k, ok := g.wanted[c]; return k, ok }

// holding reports whether some deletion waits.
func (g *goal[K, V, C]) holding() bool {
	for _, it := range g.pending {
		if it.held {
			return true
		}
	}
	return false
}

// release ends every hold.
func (g *goal[K, V, C]) release() {
	for _, it := range g.pending {
		it.held = false
	}
}

// hold has the deletions of keys wait, if they are still to be made.
func (g *goal[K, V, C]) hold(keys []K) {
	for _, k := range keys {
		if it := g.pending[k]; it != nil {
			it.held = true
		}
	}
}
