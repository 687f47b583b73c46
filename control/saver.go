package control

import (
	"log/slog"
	"time"
)

// saver hands the last good objects to the Save function, at most once every
// saveInterval and in a goroutine of its own: a slow disk must not hold up the
// dataplane. Run starts and stops it. A save that failed is tried again with the
// next change; the failure is logged when it begins.
type saver struct {
	save   func([]Object) error
	log    *slog.Logger
	work   chan []Object
	done   chan struct{}
	serial uint64    // of the objects offered last
	next   time.Time // not before
}

func (s *saver) start(save func([]Object) error, log *slog.Logger) {
	if save == nil {
		return
	}
	s.save, s.log = save, log
	s.work, s.done = make(chan []Object), make(chan struct{})
	go func() {
		defer close(s.done)
		failing := false
		for objs := range s.work {
			err := s.save(objs)
			if err != nil && !failing {
				s.log.Error("last good state not saved", "err", err)
			}
			failing = err != nil
		}
	}()
}

// offer hands over the objects if they changed and it is time, and returns when
// to offer again; zero: not before something changes.
func (s *saver) offer(c *Controller, now time.Time) time.Time {
	if s.save == nil {
		return time.Time{}
	}
	c.mu.Lock()
	serial := c.serial
	c.mu.Unlock()
	if serial == s.serial {
		return time.Time{}
	}
	if now.Before(s.next) {
		return s.next
	}
	objs, serial, ok := c.all()
	if !ok {
		return time.Time{} // the pass that looks at the new list offers again
	}
	s.next = now.Add(saveInterval)
	select {
	case s.work <- objs:
		s.serial = serial
		return time.Time{}
	default: // still writing
		return s.next
	}
}

// last hands over the objects as they are when the controller stops.
func (s *saver) last(c *Controller) {
	if s.save == nil {
		return
	}
	if objs, serial, ok := c.all(); ok && serial != s.serial {
		s.work <- objs
	}
}

func (s *saver) stop() {
	if s.save != nil {
		close(s.work)
		<-s.done
	}
}

// all returns the objects and their serial, unless a full list has come that
// nobody has judged yet: it might be the empty one that must not become the last
// good.
func (c *Controller) all() (objs []Object, serial uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listed {
		return nil, 0, false
	}
	return c.objects.All(), c.serial, true
}
