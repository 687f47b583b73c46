package keeper

import (
	"errors"
	"sync"
)

// Embedded is the embedded store's process, which is started again while it is kept.
type Embedded interface {
	// Close ends it.
	Close()
	// Release leaves it to whoever finds it.
	Release()
}

// embedded is the embedded store, which is the keeper's to run: what a dataplane starts
// would be bound as it is, and be there for another one to find after each restart.
type embedded struct {
	start func() (Embedded, error) // nil: there is none

	mu   sync.Mutex
	runs Embedded // guarded by mu; nil: not started yet
}

// ensure has the store run. The first child that asks has it started; it has
// checked by then that the store's directory is its own.
func (e *embedded) ensure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs != nil {
		return nil
	}
	if e.start == nil {
		return errors.New("this keeper was started without an embedded store: have another daemon take over with vswitch run --take-over, or restart the whole service")
	}
	runs, err := e.start()
	if err == nil {
		e.runs = runs
	}
	return err
}

// end stops the store, if it is this keeper's.
func (e *embedded) end() {
	if runs := e.take(); runs != nil {
		runs.Close()
	}
}

// leave has the store go on without this keeper: another one has it.
func (e *embedded) leave() {
	if runs := e.take(); runs != nil {
		runs.Release()
	}
}

func (e *embedded) take() Embedded {
	e.mu.Lock()
	defer e.mu.Unlock()
	runs := e.runs
	e.runs = nil
	return runs
}
