package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// SupervisorConfig says which store to keep running and how it is started.
type SupervisorConfig struct {
	Store      Config
	Executable string       // empty: this program
	Command    []string     // before Store's arguments; nil: "store"
	Log        *slog.Logger // nil: slog.Default()
}

// Supervisor keeps a store process running. One that runs already, left by a daemon
// that was killed, is taken over if it serves what this one would, and replaced if
// not. One that ends is started again, after a pause that grows while it keeps
// ending. Close ends it; a Supervisor that is merely gone does not.
type Supervisor struct {
	cfg   SupervisorConfig
	log   *slog.Logger
	stop  context.CancelFunc
	done  chan struct{}
	leave atomic.Bool // the store is to go on without this supervisor

	mu       sync.Mutex
	restarts int // guarded by mu
	lastErr  error
}

// Start begins to supervise. What can't be listened on is refused here: the store
// would end, and be started again, for ever.
func Start(cfg SupervisorConfig) (*Supervisor, error) {
	if err := cfg.Store.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.Store.tryListen(); err != nil {
		return nil, err
	}
	if cfg.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		cfg.Executable = exe
	}
	if cfg.Command == nil {
		cfg.Command = []string{"store"}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Supervisor{cfg: cfg, log: cfg.Log, stop: cancel, done: make(chan struct{})}
	go s.run(ctx)
	return s, nil
}

// URL is where this node reaches the store.
func (s *Supervisor) URL() string { return ClientURL(s.cfg.Store.Dir) }

// Ready waits until the store listens. Its error says why the store does not
// start, from the end of its log, if ctx ends first.
func (s *Supervisor) Ready(ctx context.Context) error {
	for {
		if answers(s.cfg.Store.Dir) {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("store: stopped")
		case <-ctx.Done():
			return fmt.Errorf("store in %s does not answer: %w%s", s.cfg.Store.Dir, ctx.Err(), s.why())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// why is what is known of a store that keeps ending.
func (s *Supervisor) why() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lastErr != nil:
		return ": " + s.lastErr.Error()
	case s.restarts > 0:
		return fmt.Sprintf("; it ended %d times; its log ends: %s", s.restarts, lastLine(logPath(s.cfg.Store.Dir)))
	}
	return ""
}

// Restarts is how often the store ended by itself.
func (s *Supervisor) Restarts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts
}

// Close stops the store and the supervision, and waits for both.
func (s *Supervisor) Close() {
	s.stop()
	<-s.done
}

// Release ends the supervision and leaves the store running, for a successor to take over.
func (s *Supervisor) Release() {
	s.leave.Store(true)
	s.Close()
}

// Pauses before a restart, doubled each time the store ended within backoffReset.
const (
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 10 * time.Second
	backoffReset = time.Minute
)

func (s *Supervisor) run(ctx context.Context) {
	defer close(s.done)
	defer s.sweep()
	wait := backoffMin
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.restarts++
		s.lastErr = err
		s.mu.Unlock()
		if time.Since(began) > backoffReset {
			wait = backoffMin
		}
		s.log.Warn("store ended; starting it again", "wait", wait, "err", err,
			"log", lastLine(logPath(s.cfg.Store.Dir)))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffMax)
	}
}

// sweep ends a store that runs although none was being waited for: one that an
// earlier daemon started a moment before this one looked.
func (s *Supervisor) sweep() {
	if s.leave.Load() {
		return
	}
	if p := find(s.cfg.Store.Dir); p != nil {
		p.stop()
		p.close()
	}
}

// once has a store run until it ends or ctx does.
func (s *Supervisor) once(ctx context.Context) error {
	c := &s.cfg.Store
	p := find(c.Dir)
	if p != nil && !slices.Equal(p.args, c.Args()) {
		s.log.Info("store runs with another configuration; replacing it", "pid", p.pid)
		p.stop()
		p.close()
		p = nil
	}
	if p != nil {
		s.log.Info("store found running", "pid", p.pid)
	} else {
		var err error
		if p, err = spawn(s.cfg.Executable, s.cfg.Command, c); err != nil {
			return err
		}
		s.log.Info("store started", "pid", p.pid)
	}
	defer p.close()
	select {
	case <-p.done:
	case <-ctx.Done():
		if !s.leave.Load() {
			p.stop()
		}
	}
	return nil
}
