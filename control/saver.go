package control

import (
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// saveInterval bounds how often the last good objects are written: what a crash
// loses of them comes back with the next full list.
const saveInterval = time.Second

// saveShare bounds how much of the time goes to writing them: after a save that
// took a second the next waits for a hundred. With 150,000 endpoints in 10,000 slices one
// takes about that, and leaves the garbage collector as much to do: at a share of twenty
// that was 11 % of a core while twenty services a second changed.
const saveShare = 100

// unsaved is what happened to the objects since the saver was last given it: a full
// list if there was one, then what changed of it.
type unsaved struct {
	listed  bool
	all     []keyed
	changed map[Key]kept // none: deleted
}

func (u *unsaved) reset(all []keyed) { *u = unsaved{listed: true, all: all} }

// note takes an object as it is now; none is deleted.
func (u *unsaved) note(k Key, o kept) {
	if u.changed == nil {
		u.changed = map[Key]kept{}
	}
	u.changed[k] = o
}

func (u *unsaved) empty() bool { return !u.listed && len(u.changed) == 0 }

// apply brings a set of objects up to date.
func (u *unsaved) apply(all map[Key]kept) map[Key]kept {
	if u.listed {
		all = make(map[Key]kept, len(u.all))
		for _, o := range u.all {
			all[o.Key] = o.kept
		}
	}
	for k, o := range u.changed {
		if o == (kept{}) {
			delete(all, k)
		} else {
			all[k] = o
		}
	}
	return all
}

// saver hands the last good objects to the Save function, at most once every
// saveInterval and in a goroutine of its own, which keeps a list of them by itself:
// neither a slow disk nor the number of objects may hold up the dataplane. Run
// starts and stops it. A save that failed is tried again with the next change; the
// failure is logged when it begins.
type saver struct {
	save func(iter.Seq[Object]) error
	log  *slog.Logger
	work chan unsaved
	done chan struct{}
	took atomic.Int64 // ns; the last save
	next time.Time    // not before
}

func (s *saver) start(save func(iter.Seq[Object]) error, log *slog.Logger) {
	if save == nil {
		return
	}
	s.save, s.log = save, log
	s.work, s.done = make(chan unsaved), make(chan struct{})
	go func() {
		defer close(s.done)
		all := map[Key]kept{}
		failing := false
		for u := range s.work {
			began := time.Now()
			all = u.apply(all)
			u = unsaved{} // a list is as large as what is kept of it
			err := s.save(ordered(all))
			if err != nil && !failing {
				s.log.Error("last good state not saved", "err", err)
			}
			failing = err != nil
			s.took.Store(int64(time.Since(began)))
		}
	}()
}

// ordered goes through objects by key.
func ordered(all map[Key]kept) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(all), Key.compare) {
			if !yield(all[k].object()) {
				return
			}
		}
	}
}

// offer hands over what is not saved yet if it is time, and returns when to offer
// again; zero: not before something changes.
func (s *saver) offer(c *Controller, now time.Time) time.Time {
	if s.save == nil {
		return time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listed || c.unsaved.empty() {
		return time.Time{} // the pass that looks at the new list offers again
	}
	if now.Before(s.next) {
		return s.next
	}
	s.next = now.Add(max(saveInterval, saveShare*time.Duration(s.took.Load())))
	select {
	case s.work <- c.unsaved:
		c.unsaved = unsaved{}
		return time.Time{}
	default: // still writing
		return s.next
	}
}

// last hands over what is not saved yet when the controller stops: unless a full
// list has come that nobody has judged yet. It might be the empty one that must not
// become the last good.
func (s *saver) last(c *Controller) {
	if s.save == nil {
		return
	}
	c.mu.Lock()
	u, judged := c.unsaved, !c.listed
	c.unsaved = unsaved{}
	c.mu.Unlock()
	if judged && !u.empty() {
		s.work <- u
	}
}

func (s *saver) stop() {
	if s.save != nil {
		close(s.work)
		<-s.done
	}
}
