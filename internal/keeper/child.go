package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vswitch/internal/bound"
	"vswitch/internal/fdpass"
)

// child is one process.
type child struct {
	cmd       *exec.Cmd
	waiting   chan struct{}           // closed when it has asked to begin
	begin     chan struct{}           // closed when it may begin
	ready     chan struct{}           // closed when it said that it is
	renew     chan struct{}           // the keeper's: a token for a planned restart
	refused   *atomic.Pointer[string] // the keeper's
	reason    string                  // why it ends, as it said itself; valid once done is closed
	stock     *bound.Stock
	embedded  *embedded // the keeper's
	readyOnce sync.Once
	readyAt   time.Time     // valid once ready is closed
	exited    chan struct{} // closed when it has ended
	done      chan struct{} // closed when its last request is done with as well
	waitOnce  sync.Once
}

// start starts a child, which waits before it begins.
func (k *keeper) start() (*child, error) {
	conn, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	defer theirs.Close()
	command := k.cfg.Command()
	c := &child{
		cmd:     exec.Command(command[0], command[1:]...),
		waiting: make(chan struct{}), begin: make(chan struct{}), ready: make(chan struct{}),
		exited: make(chan struct{}), done: make(chan struct{}), renew: k.renew, refused: &k.refused, embedded: &k.embedded, stock: k.cfg.Stock,
	}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.cmd.Env = append(os.Environ(), versionEnv+"="+version, startsEnv+"="+strconv.FormatUint(k.starts, 10))
	k.starts++
	c.cmd.ExtraFiles = []*os.File{theirs} // becomes ConnFD
	// Without its keeper a dataplane would be in the way of the next one.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := asVictim(k.cfg.Score, c.cmd.Start); err != nil {
		conn.Close()
		err = fmt.Errorf("keeper: start the dataplane: %w", err)
		if errors.Is(err, syscall.EACCES) {
			// A dynamic one is run by its loader, which is among the programs closed to a
			// confined keeper.
			err = fmt.Errorf("%w; want a program that this user may run, and a static one: CGO_ENABLED=0, as make build has it", err)
		}
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c.serve(conn, k.store)
	}()
	go func() {
		_ = c.cmd.Wait() // how it ended is in ProcessState
		close(c.exited)
		conn.Close()
		<-served // so that nothing of it comes after its successor began
		close(c.done)
	}()
	return c, nil
}

// lastWords is why the child, which has ended, did so before it began.
func (c *child) lastWords() string {
	if c.reason != "" {
		return c.reason
	}
	return fmt.Sprintf("%s ended before it began: %v; what it said is in the daemon's log", c.cmd.Path, c.cmd.ProcessState)
}

// lasted reports whether the child was of use for a time.
func (c *child) lasted() bool { return isClosed(c.ready) && time.Since(c.readyAt) >= steady }

// stop tells the child to end and waits until it has; one that takes too long is killed.
func (c *child) stop(s syscall.Signal, timeout time.Duration) error {
	_ = c.cmd.Process.Signal(s) // it may have ended already
	select {
	case <-c.done:
	case <-time.After(timeout):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("keeper: the dataplane did not end within %v of %v: killed", timeout, s)
	}
	if code := c.cmd.ProcessState.ExitCode(); code > 0 {
		return &ExitError{code}
	}
	return nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
