// Package upkeep looks after what a process has outside of itself, where others can
// take it away: the files of its sockets, its lock, its records, a route.
//
// What is found missing is put back where this process can, and reported where it
// can't: in the log, once, and in Status, with counts. The package knows none of the
// things by itself; whoever owns one says how to look and how to mend.
//
// It looks every few seconds instead of being told. A watch (inotify) ends with the
// directory it is on, which is the worst that may happen to that, and a look at
// files costs some microseconds.
package upkeep

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Interval is the time between two looks: whatever is taken away is found, and
// mended if it can be, within it.
const Interval = 4 * time.Second

// Object is one thing to look after. Its functions are called by one goroutine, one
// after the other, and should not take long.
type Object struct {
	Name string
	// Check says what is wrong; nil: nothing.
	Check func() error
	// Mend puts it right; nil: this process can't.
	Mend func() error
}

// Status is how an object is, and was.
type Status struct {
	Object  string
	Problem string    // as of the last look; empty: none
	Since   time.Time // when the problem was found; zero without one
	// Found and Mended count how often it was found wrong, and how often this process
	// put it right. It may have come right otherwise.
	Found, Mended uint64
}

// Watch looks after objects.
type Watch struct {
	log     *slog.Logger
	objects []Object

	mu     sync.Mutex
	states []Status // by objects; guarded by mu
}

// New makes a watch that Run, or Look, sets to work. Objects are mended in their order.
func New(log *slog.Logger, objects ...Object) *Watch {
	w := &Watch{log: log, objects: objects, states: make([]Status, len(objects))}
	for i, o := range objects {
		w.states[i].Object = o.Name
	}
	return w
}

// Run looks at once and every Interval until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	w.Look(time.Now())
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			w.Look(now)
		}
	}
}

// Look looks at every object once and mends what it can.
func (w *Watch) Look(now time.Time) {
	for i, o := range w.objects {
		before := w.state(i)
		after := w.look(o, before, now)
		w.mu.Lock()
		w.states[i] = after
		w.mu.Unlock()
	}
}

func (w *Watch) look(o Object, s Status, now time.Time) Status {
	wrong := o.Check()
	if wrong == nil {
		if s.Problem != "" {
			w.log.Info("in order again", "object", o.Name)
		}
		s.Problem, s.Since = "", time.Time{}
		return s
	}
	if s.Problem == "" {
		s.Found++
		s.Since = now
	}
	problem := wrong
	if o.Mend != nil {
		if problem = o.Mend(); problem == nil {
			problem = o.Check()
		}
	}
	if problem == nil {
		s.Mended++
		s.Problem, s.Since = "", time.Time{}
		w.log.Warn("was not as it should be, and mended", "object", o.Name, "err", wrong)
		return s
	}
	if text := problem.Error(); text != s.Problem {
		s.Problem = text
		w.log.Error("not as it should be", "object", o.Name, "err", problem)
	}
	return s
}

func (w *Watch) state(i int) Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states[i]
}

// Status is how every object was when it was looked at last.
func (w *Watch) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Status(nil), w.states...)
}
