// Package keeper is the small parent of a daemon, which holds what must outlive it:
// the descriptors of TAP queues, sockets and the flow table's memory.
//
// A child is started, and started again when it ends. All it keeps it puts into the
// keeper (fdstore.Store, by way of Client), under names; its successor gets it back
// under the same names. The keeper looks at no packet and knows no name.
//
// The states of a child:
//
//	started ── asks to begin ── waiting ── the one before is gone ── begun ── ready
//
// One that ends before it was ready, at the keeper's own start, ends the keeper
// with its exit code: a mistake in the configuration is no reason to try again. One
// that ends later has a successor at once, or, if successors keep ending, after a
// pause that grows. At a planned restart the successor is started first, and waits
// while the one before ends: its start-up costs no time without forwarding. If it
// ends while it waits, the one before stays.
//
// Only cmd/vswitch may import it, but for Client and fdstore's interface.
package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"vswitch/internal/bound"
	"vswitch/internal/fdstore"
	"vswitch/internal/resident"
)

const (
	// The pause before a successor is started, from the second early end in a row on.
	backoffMin = 50 * time.Millisecond
	backoffMax = 5 * time.Second
	// steady is how long a child must have been ready to count as no early end. One that
	// forwards for this long between two crashes is worth having at once.
	steady = 200 * time.Millisecond
	// stopTimeout is how long a child may take to end when told to.
	stopTimeout = 20 * time.Second
	// handOverTimeout is the same at a planned restart, when nobody forwards for part
	// of it.
	handOverTimeout = 2 * time.Second
	// beginTimeout is Config.BeginTimeout's default.
	beginTimeout = 20 * time.Second
)

// HandOver tells a child to end and leave to its successor what both use.
const HandOver = syscall.SIGUSR2

// Config says what a keeper runs.
type Config struct {
	// Command is the child's program and arguments, asked for at each start: an
	// upgrade may have put another program in its place.
	Command func() []string
	// Restart brings a token for each planned restart.
	Restart <-chan os.Signal
	// Store holds what children keep. Nil: a fdstore.Memory, which ends with the process.
	// Run closes it.
	Store Store
	// Manager is told how the daemon fares. Nil: nobody is.
	Manager Manager
	// Keep puts what children are to find from the first on. Nil: nothing.
	Keep func(fdstore.Store) error
	// Ready is called once, when the first child is. Nil: nobody asks.
	Ready func()
	// Socket is the path at which the keeper of another daemon, another version's
	// perhaps, may come to take over. Empty: none can.
	Socket string
	// TakeOver takes the place of the keeper that listens at Socket, if there is one.
	// Such a keeper, once another has taken its own place, stays, holding nothing,
	// until it is told to stop: who starts daemons that way would start it again if it
	// ended, and it would take the place back.
	TakeOver bool
	// Stock is where the tunnel's sockets come from. Nil: an empty one.
	Stock *bound.Stock
	// BeginTimeout is how long a successor may take until it asks to begin, at a planned
	// restart; 0: 20 s, many times what a busy machine takes.
	BeginTimeout time.Duration
	// Drain is how much longer a child may take to end when told to.
	Drain time.Duration
	// Score is from OpenScore, and has the kernel end the dataplane rather than the keeper
	// when memory is short. Nil: it takes the larger. Run closes it.
	Score *os.File
	// Embedded starts the embedded store, which ends with the keeper. Nil: there is none.
	Embedded func() (Embedded, error)
	Log      *slog.Logger
}

// Store is what a keeper needs of one.
type Store interface {
	fdstore.Store
	Close() error // lets go of what it holds
}

// Manager is a service manager, such as sdnotify.Manager.
type Manager interface {
	Ready() error     // a child forwards, the first or another
	Reloading() error // another is to take its place; Ready follows
	Stopping() error  // the end has begun
}

// ExitError is how the child ended before it ever was ready. What it had to say it
// has said.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("the daemon ended with exit code %d", e.Code) }

// keeper is what Run works with.
type keeper struct {
	cfg   Config
	store Store
	early int // ends in a row that came early
	renew chan struct{}
	// refused is why the last planned restart came to nothing; nil: none did since one
	// was asked for.
	refused atomic.Pointer[string]
	// claims are of those who come to take over; nil: nobody can.
	claims   *claims
	starts   uint64 // children started
	embedded embedded
}

// Run keeps a child running until ctx ends, which is not an error, or the first
// ends before it was ready.
func Run(ctx context.Context, cfg Config) error {
	// Children get the kill signal when this thread ends, not when the process does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	k := &keeper{cfg: cfg, store: cfg.Store, renew: make(chan struct{}, 1), embedded: embedded{start: cfg.Embedded}}
	if k.cfg.Stock == nil {
		k.cfg.Stock = &bound.Stock{}
	}
	defer k.cfg.Stock.Close()
	if k.cfg.Score != nil {
		defer k.cfg.Score.Close()
	}
	if k.store == nil {
		k.store = &fdstore.Memory{}
	}
	defer k.store.Close()
	defer k.embedded.end()
	if cfg.Keep != nil {
		if err := cfg.Keep(k.store); err != nil {
			return err
		}
	}
	current, err := k.first(ctx)
	if err != nil || current == nil {
		return err
	}
	defer func() { k.claims.close() }()
	if err := resident.Trim(); err != nil {
		cfg.Log.Warn("the keeper keeps memory that it doesn't need", "err", err)
	}
	first := true // no child was ready yet
	ready := current.ready
	said := false // cfg.Ready was called
	for {
		var next *child
		select {
		case <-ready:
			ready = nil
			k.tell(Manager.Ready)
			if cfg.Ready != nil && !said {
				cfg.Ready()
			}
			said = true
			continue
		case <-ctx.Done():
			k.tell(Manager.Stopping)
			return current.stop(syscall.SIGTERM, stopTimeout+cfg.Drain)
		case <-current.done:
			switch {
			case ctx.Err() != nil: // a terminal's ^C is for both
				return nil
			case first && !isClosed(current.ready):
				return unready(current)
			}
			state := current.cmd.ProcessState
			cfg.Log.Error("the dataplane ended; starting it again", "pid", state.Pid(), "state", state.String())
			if next = k.successor(ctx, current); next == nil {
				return nil // told to stop meanwhile
			}
		case t := <-k.claims.coming():
			if next = k.yield(ctx, t, current); next == nil {
				return k.rest(ctx)
			}
		case <-cfg.Restart:
			next = k.replace(ctx, current)
		case <-k.renew:
			next = k.replace(ctx, current)
		}
		if next != nil { // else the restart was refused
			first = false
			close(next.begin)
			current = next
		}
		ready = current.ready
	}
}

// tell tells the manager, if there is one. That it does not hear is no reason to fail.
func (k *keeper) tell(what func(Manager) error) {
	if k.cfg.Manager == nil {
		return
	}
	if err := what(k.cfg.Manager); err != nil {
		k.cfg.Log.Warn("the service manager is not told", "err", err)
	}
}

// first starts the first child, in the place of another keeper's or not, and listens
// for those who come to take over. Nil and no error: ctx ended.
func (k *keeper) first(ctx context.Context) (*child, error) {
	var other *before
	var err error
	if k.cfg.TakeOver {
		if other, err = dialBefore(k.cfg.Socket); err != nil {
			return nil, err
		}
	}
	if other == nil {
		if k.claims, err = listen(k.cfg.Socket, k.store, k.cfg.Drain, k.cfg.Log); err != nil {
			return nil, err
		}
		c, err := k.start()
		if err != nil {
			k.claims.close()
			return nil, err
		}
		close(c.begin)
		return c, nil
	}
	c, err := k.start()
	if err != nil {
		return nil, errors.Join(err, other.Close())
	}
	if err := k.takeOver(ctx, other, c); err != nil || ctx.Err() != nil {
		k.embedded.leave() // to the other
		return nil, err
	}
	if k.claims, err = listen(k.cfg.Socket, k.store, k.cfg.Drain, k.cfg.Log); err != nil {
		k.cfg.Log.Error("nobody can take over from this vswitch", "err", err)
	}
	k.cfg.Log.Info("taken over", "pid", c.cmd.Process.Pid)
	return c, nil
}

// rest is what a keeper does that has given its place away.
func (k *keeper) rest(ctx context.Context) error {
	k.claims.close()
	if k.cfg.TakeOver && ctx.Err() == nil {
		k.cfg.Log.Info("nothing is left to do here; waiting to be told to stop")
		<-ctx.Done()
	}
	return nil
}

// successor starts another child in the place of one that ended; nil: ctx ended.
func (k *keeper) successor(ctx context.Context, ended *child) *child {
	if ended.lasted() {
		k.early = 0
	} else {
		k.early++
	}
	for {
		if k.early > 1 {
			pause := min(backoffMin<<min(k.early-2, 16), backoffMax)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
		next, err := k.start()
		if err == nil {
			return next
		}
		k.early++
		k.cfg.Log.Error("the dataplane can't be started; trying again", "err", err)
	}
}

// replace starts a successor, ends the current child once that waits, and returns
// the successor; nil: it is of no use, and the current child goes on.
func (k *keeper) replace(ctx context.Context, current *child) *child {
	next, err := k.start()
	if err != nil {
		k.refuse(err.Error())
		return nil
	}
	k.tell(Manager.Reloading)
	k.cfg.Log.Info("planned restart", "pid", current.cmd.Process.Pid, "next", next.cmd.Process.Pid)
	within := cmp.Or(k.cfg.BeginTimeout, beginTimeout)
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case <-next.waiting:
	case <-next.done:
		k.refuse(next.lastWords())
		return nil
	case <-late.C:
		_ = next.stop(syscall.SIGKILL, stopTimeout)
		k.refuse(fmt.Sprintf("%s did nothing for %v: is it a vswitch?", next.cmd.Path, within))
		return nil
	case <-current.done: // by itself, just now
		return next
	case <-ctx.Done():
		_ = next.stop(syscall.SIGKILL, stopTimeout)
		return nil
	}
	if err := current.stop(HandOver, handOverTimeout+k.cfg.Drain); err != nil {
		k.cfg.Log.Warn("the dataplane did not end as it should", "err", err)
	}
	return next
}

// refuse says why a planned restart comes to nothing.
func (k *keeper) refuse(reason string) {
	k.refused.Store(&reason)
	k.cfg.Log.Error("restart refused; the dataplane stays", "reason", reason)
}
