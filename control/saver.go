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

// saveShare bounds how much of the time goes to writing all of them: after one that took
// a second the next waits for twenty. With 150,000 endpoints in 10,000 slices one takes
// about that, and leaves the garbage collector as much to do. What changed is written
// each time.
const saveShare = 20

// LastGood keeps the last good objects for the next start. Its methods are called by one
// goroutine at a time.
type LastGood interface {
	// Replace keeps these objects alone.
	Replace(iter.Seq[Object]) error
	// Append keeps what changed since: an object is as given, or, if nil, was deleted. It is
	// not called before Replace, nor after an error but by way of Replace.
	Append(iter.Seq2[Key, Object]) error
	// Long reports whether Replace is due before the next Append.
	Long() bool
}

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

// changes goes through what changed by key.
func (u *unsaved) changes() iter.Seq2[Key, Object] {
	return func(yield func(Key, Object) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(u.changed), Key.compare) {
			if !yield(k, u.changed[k].stored()) {
				return
			}
		}
	}
}

// saver hands the last good objects to a LastGood, at most once every saveInterval and in
// a goroutine of its own, which keeps a list of them by itself: neither a slow disk nor
// the number of objects may hold up the dataplane. Run starts and stops it. A save that
// failed is tried again with the next change; the failure is logged when it begins.
type saver struct {
	keep LastGood
	log  *slog.Logger
	work chan unsaved
	done chan struct{}
	next time.Time // not before

	// Written by the saver's goroutine:
	all     atomic.Bool               // the next save has to be of all objects
	allNext atomic.Pointer[time.Time] // no save of all objects before; it heeds no change of the clock
}

func (s *saver) start(keep LastGood, log *slog.Logger) {
	if keep == nil {
		return
	}
	s.keep, s.log = keep, log
	s.work, s.done = make(chan unsaved), make(chan struct{})
	s.all.Store(true)
	s.allNext.Store(&time.Time{})
	go func() {
		defer close(s.done)
		all := map[Key]kept{}
		failing := false
		for u := range s.work {
			all = u.apply(all)
			err := s.save(u, all)
			if err != nil && !failing {
				s.log.Error("last good state not saved", "err", err)
			}
			failing = err != nil
		}
	}()
}

// save writes what happened, or all objects.
func (s *saver) save(u unsaved, all map[Key]kept) error {
	began := time.Now()
	due := u.listed || s.all.Load() || s.keep.Long() && !began.Before(*s.allNext.Load())
	var err error
	if due {
		u = unsaved{} // a list is as large as what is kept of it
		err = s.keep.Replace(ordered(all))
		ended := time.Now()
		next := ended.Add(saveShare * ended.Sub(began))
		s.allNext.Store(&next)
	} else {
		err = s.keep.Append(u.changes())
	}
	s.all.Store(err != nil)
	return err
}

// ordered goes through objects by key.
func ordered(all map[Key]kept) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(all), Key.compare) {
			if !yield(all[k].stored()) {
				return
			}
		}
	}
}

// offer hands over what is not saved yet if it is time, and returns when to offer
// again; zero: not before something changes.
func (s *saver) offer(c *Controller, now time.Time) time.Time {
	if s.keep == nil {
		return time.Time{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listed || c.unsaved.empty() {
		return time.Time{} // the pass that looks at the new list offers again
	}
	next := s.next
	if c.unsaved.listed || s.all.Load() {
		if all := s.allNext.Load(); all.After(next) {
			next = *all
		}
	}
	if now.Before(next) {
		return next
	}
	s.next = now.Add(saveInterval)
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
	if s.keep == nil {
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
	if s.keep != nil {
		close(s.work)
		<-s.done
	}
}
