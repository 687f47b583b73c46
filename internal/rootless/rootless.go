// Package rootless gives a command a network of its own, as an ordinary user: it
// starts the command in new user, mount and network namespaces whose network is a
// vswitch dataplane outside, in this user's own network.
//
// Three processes take part:
//
//	this one       starts the other two, passes signals on, and is the keeper
//	               that holds the interface's queues
//	the command    first package inside, which makes the interface
//	the dataplane  package dataplane; should it crash, another goes on
//
// The command ends with this process, and with the last of both goes all that was
// made: the interface lives in a namespace that nobody has any more, and the host's
// ports belong to the dataplane.
package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/cgroup"
	"vswitch/internal/fdstore"
	"vswitch/internal/keeper"
	"vswitch/internal/rootless/dataplane"
	"vswitch/internal/rootless/inside"
	"vswitch/internal/userns"
)

// Config says what runs how. Self takes the place of this program's path: it is
// started again as `rootless inside` and `rootless dataplane`.
type Config struct {
	Self      string
	Command   []string
	Dataplane dataplane.Config // but for Features, which the TAP made has
	// Setup is what the command finds inside besides the interface.
	Setup inside.Setup
	// OneID maps this user alone, although more could be mapped.
	OneID bool
	// Signals are passed on to the command.
	Signals <-chan os.Signal
	Log     *slog.Logger
	// DataplaneArgs are added to the dataplane's own command line.
	DataplaneArgs []string

	keep map[string][]int // more for the keeper, by name
}

// ExitError is how the command ended, or why it never began. Text is empty where
// all has been said.
type ExitError struct {
	Code int
	Text string
}

func (e *ExitError) Error() string { return e.Text }

// Run runs the command to its end. An *ExitError says how that was, unless it was
// with exit code 0.
func Run(cfg Config) error {
	if err := userns.CheckTun(); err != nil {
		return err
	}
	cg, giveBack := ownCgroup(&cfg)
	defer giveBack()
	c, err := start(&cfg, cg)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	made, fds, err := c.conn.Receive()
	if err != nil {
		return c.failed(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := make(chan struct{})
	cfg.Dataplane.Features = made.Features
	dataplaneEnded := make(chan error, 1)
	go func() { dataplaneEnded <- keep(ctx, &cfg, fds, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-dataplaneEnded:
		c.kill()
		return err
	}
	if err := c.conn.Send(inside.Message{}); err != nil {
		return c.failed(err)
	}
	if _, _, err := c.conn.Receive(); isError(err) {
		cancel()
		<-dataplaneEnded
		return c.failed(err)
	}
	err = c.wait(cfg.Signals)
	cancel()
	if stopErr := <-dataplaneEnded; err == nil {
		err = stopErr
	}
	return err
}

// ownCgroup makes a cgroup for a container engine, if this user has one to divide,
// and what removes it.
func ownCgroup(cfg *Config) (cg *cgroup.Own, giveBack func()) {
	if !cfg.Setup.Engine {
		return nil, func() {}
	}
	cg, err := cgroup.New()
	if err != nil {
		cfg.Log.Warn("containers have no cgroups, and so no limits; "+session+" gives them some", "why", err)
		return nil, func() {}
	}
	if len(cg.Lacks) > 0 {
		cfg.Log.Warn("containers have no such limits, since other processes are in this one's cgroup; "+session+" has one of its own",
			"limits", strings.Join(cg.Lacks, " "))
	}
	return cg, func() {
		ctx, cancel := context.WithTimeout(context.Background(), cgroupPatience)
		defer cancel()
		if err := cg.Remove(ctx); err != nil {
			cfg.Log.Warn("the command's cgroup is left", "err", err)
		}
	}
}

// session is what gives a process a cgroup that it may divide.
const session = "systemd-run --user --scope -p Delegate=yes vswitch rootless run ..."

// cgroupPatience is for processes that have been killed to be gone.
const cgroupPatience = 2 * time.Second

// isError tells an error that was sent from the end of the connection, which the
// command's beginning is: it has closed it.
func isError(err error) bool {
	var told *inside.Error
	return errors.As(err, &told)
}

// command is the process in the namespaces.
type command struct {
	cmd  *exec.Cmd
	conn *inside.Conn
	done chan struct{} // closed when it has ended
}

// start starts the process that becomes the command, and sends it what it must know.
func start(cfg *Config, cg *cgroup.Own) (*command, error) {
	ids, err := userns.Own(cfg.OneID)
	if err != nil {
		return nil, err
	}
	if ids.Lacks != "" {
		cfg.Log.Warn("no user but root is there inside; --one-id takes that as meant", "why", ids.Lacks)
	}
	conn, theirs, err := inside.NewPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c := &command{conn: conn, done: make(chan struct{})}
	c.cmd = exec.Command(cfg.Self, append([]string{"rootless", "inside", "--unmapped", "--"}, cfg.Command...)...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.cmd.ExtraFiles = []*os.File{theirs} // becomes inside.ConnFD
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET)
	if cfg.Setup.Engine {
		flags |= unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The command is killed when the thread ends that started it.
		runtime.LockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait() // how it ended is in ProcessState
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		conn.Close()
		return nil, fmt.Errorf("make namespaces: %w%s", err, userns.Hint())
	}
	err = ids.Write(c.cmd.Process.Pid)
	if err == nil && cg != nil {
		err = cg.Put(c.cmd.Process.Pid)
	}
	if err == nil {
		err = conn.Send(inside.Message{}) // they are mapped
	}
	if err == nil {
		setup := cfg.Setup
		setup.Cgroup = cg != nil
		err = conn.Send(inside.Message{Plan: &cfg.Dataplane.Plan, Setup: &setup})
	}
	if err != nil {
		c.kill()
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *command) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// failed ends a command that did not begin, and says why.
func (c *command) failed(err error) error {
	var told *inside.Error
	if errors.As(err, &told) {
		c.kill()
		return &ExitError{Code: told.Code, Text: told.Text}
	}
	// It hung up: what it wrote to standard error, if anything, says why.
	select {
	case <-c.done:
	case <-time.After(time.Second):
		c.kill()
	}
	return fmt.Errorf("the process in the namespaces ended early (%v): %w", c.cmd.ProcessState, err)
}

// wait passes signals on until the command ends.
func (c *command) wait(signals <-chan os.Signal) error {
	for {
		select {
		case s := <-signals:
			if !inside.FromTerminal(s) {
				_ = c.cmd.Process.Signal(s) // it may have ended
			}
		case <-c.done:
			return exitOf(c.cmd.ProcessState)
		}
	}
}

func exitOf(s *os.ProcessState) error {
	status := s.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled():
		return &ExitError{Code: 128 + int(status.Signal())} // as shells have it
	case status.ExitStatus() != 0:
		return &ExitError{Code: status.ExitStatus()}
	}
	return nil
}

// keep runs the dataplane, again should it crash, until ctx ends. It owns fds: the
// TAP's queues and behind them what lists sockets.
func keep(ctx context.Context, cfg *Config, fds []int, ready func()) error {
	text, err := json.Marshal(cfg.Dataplane)
	if err != nil {
		return err
	}
	score, err := keeper.OpenScore()
	if err != nil {
		cfg.Log.Warn(err.Error())
	}
	return keeper.Run(ctx, keeper.Config{
		Score: score,
		Command: func() []string {
			return append([]string{cfg.Self, "rootless", "dataplane", "--config", string(text)}, cfg.DataplaneArgs...)
		},
		Keep: func(s fdstore.Store) error {
			defer closeAll(fds)
			last := len(fds) - 1
			if last < 1 {
				return fmt.Errorf("%d descriptors from inside, want queues and a socket", len(fds))
			}
			err := errors.Join(s.Put(dataplane.QueuesName, fds[:last]), s.Put(dataplane.SocketsName, fds[last:]))
			for name, more := range cfg.keep {
				err = errors.Join(err, s.Put(name, more))
				closeAll(more)
			}
			return err
		},
		Ready: ready,
		Log:   cfg.Log,
	})
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
