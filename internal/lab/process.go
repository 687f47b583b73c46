package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run in a namespace.
type Command struct {
	// Name is for messages and the log file; empty: the program's own.
	Name string
	// Path of the program, looked up in PATH if it has no slash.
	Path string
	Args []string
	// Env is added to this process's environment.
	Env   []string
	Stdin io.Reader
	// Files are the process's descriptors from 3 on.
	Files []*os.File
	// Stdout and Stderr; nil: the process's log file.
	Stdout, Stderr io.Writer

	// cgroup makes the program the first process of a container that has this cgroup.
	cgroup *os.File
}

// Process is a running program. It is the leader of its process group, and is
// killed when the process that started it dies, however it dies.
type Process struct {
	Name string
	// LogPath is where its output goes, behind that of earlier processes of the
	// name; empty if the starter takes all of it.
	LogPath string

	lab      *Lab
	logStart int64 // its own output's begin in the log
	cmd      *exec.Cmd
	done     chan struct{}
	err      error // of Wait, valid once done is closed
	stop     sync.Once
	stopBy   syscall.Signal
}

// Start runs a command in the namespace and returns once it runs.
func (n *Namespace) Start(c Command) (*Process, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	p := &Process{Name: c.Name, lab: n.lab, done: make(chan struct{}), stopBy: syscall.SIGTERM}
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.ExtraFiles = c.Files
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.cgroup != nil {
		a := p.cmd.SysProcAttr
		a.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		a.UseCgroupFD, a.CgroupFD = true, int(c.cgroup.Fd())
		a.Unshareflags = unix.CLONE_NEWCGROUP // once it is in that
		p.stopBy = syscall.SIGKILL            // all processes of the container end with the first
	}
	// A grandchild that holds the pipes must not keep Wait from returning.
	p.cmd.WaitDelay = time.Second

	var logFile *os.File
	if c.Stdout == nil || c.Stderr == nil {
		var err error
		p.LogPath = n.lab.path(n.Name[len(namePrefix)+len(n.lab.Suffix)+1:] + "." + c.Name + ".log")
		if logFile, err = os.OpenFile(p.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		defer logFile.Close()
		if fi, err := logFile.Stat(); err == nil {
			p.logStart = fi.Size()
		}
		if c.Stdout == nil {
			p.cmd.Stdout = logFile
		}
		if c.Stderr == nil {
			p.cmd.Stderr = logFile
		}
	}

	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	spawner := l.spawner
	if n.here {
		spawner = l.hereSpawner
	}
	if err := spawner.start(n, p.cmd); err != nil {
		return nil, fmt.Errorf("lab: start %s in %s: %w", c.Name, n.Name, err)
	}
	l.processes = append(l.processes, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Exec runs a command in the namespace to its end and returns what it wrote to
// standard output. When it fails the error holds what it wrote to standard
// error; when ctx ends first it is killed.
func (n *Namespace) Exec(ctx context.Context, c Command) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &stdout
	}
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	p, err := n.Start(c)
	if err != nil {
		return nil, err
	}
	defer p.Forget()
	if err := p.Wait(ctx); err != nil {
		p.killGroup()
		<-p.done
		// The pipes are drained now: the buffers may be read.
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		if said != "" {
			return stdout.Bytes(), fmt.Errorf("lab: %s in %s: %w: %s", p.Name, n.Name, err, said)
		}
		return stdout.Bytes(), fmt.Errorf("lab: %s in %s: %w", p.Name, n.Name, err)
	}
	return stdout.Bytes(), nil
}

// Forget drops a finished process from what Close ends and Failures tells of.
func (p *Process) Forget() {
	l := p.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.processes {
		if o == p {
			// A new slice: Close may be walking the old one.
			l.processes = append(append([]*Process(nil), l.processes[:i]...), l.processes[i+1:]...)
			return
		}
	}
}

// Pid of the process, also after its end.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end and returns how it did: nil for exit code 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end, kills it after five seconds, and returns how
// it ended. Stopping by SIGTERM is a clean end.
func (p *Process) Stop() error {
	p.requestStop()
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.killGroup()
		<-p.done
		return fmt.Errorf("lab: %s did not stop within %v of SIGTERM: killed", p.Name, stopTimeout)
	}
	p.killGroup()
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return p.err
}

// Kill ends the process, not its children, at once and waits for its end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func (p *Process) requestStop() { p.stop.Do(func() { p.cmd.Process.Signal(p.stopBy) }) }

// killGroup kills the process and the children that stayed in its group.
func (p *Process) killGroup() { unix.Kill(-p.Pid(), unix.SIGKILL) }

func (p *Process) state() string {
	select {
	case <-p.done:
		if p.err == nil {
			return "ended"
		}
		return p.err.Error()
	default:
		return "running"
	}
}

// Log is all the process wrote to its log file so far.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.LogPath)
	return string(b[min(p.logStart, int64(len(b))):])
}

// Tail is the last lines of the log.
func (p *Process) Tail(lines int) string {
	all := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// WaitLog waits until a line of the log matches and returns it. It fails at once when the process ends without one.
func (p *Process) WaitLog(ctx context.Context, re *regexp.Regexp) (string, error) {
	for {
		ended := false
		select {
		case <-p.done:
			ended = true // look at the log once more: the line may be its last
		default:
		}
		for line := range strings.Lines(p.Log()) {
			if re.MatchString(line) {
				return strings.TrimSpace(line), nil
			}
		}
		if ended {
			return "", fmt.Errorf("lab: %s ended (%s) without saying %q:\n%s", p.Name, p.state(), re, p.Tail(20))
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-p.done:
		case <-ctx.Done():
			return "", fmt.Errorf("lab: %s did not say %q: %w:\n%s", p.Name, re, context.Cause(ctx), p.Tail(20))
		}
	}
}

// spawner is the one thread that starts processes. A child inherits the network
// namespace of the thread that forks it, and Pdeathsig fires when that thread
// ends, not when the process does: so the thread must live as long as the lab.
type spawner struct {
	jobs chan func()
	once sync.Once
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	go onThrowawayThread(func() error {
		for job := range s.jobs {
			job()
		}
		return nil
	})
	return s
}

// start enters n, starts cmd there, and stays: the next start enters its own. This
// process's own namespace can't be entered again without privilege over it, so it
// has a spawner that never left.
func (s *spawner) start(n *Namespace, cmd *exec.Cmd) error {
	if n.handle == nil && !n.here {
		return fmt.Errorf("namespace %s is closed", n.Name)
	}
	errs := make(chan error, 1)
	s.jobs <- func() {
		if n.here {
			errs <- cmd.Start()
			return
		}
		if err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		errs <- cmd.Start()
	}
	return <-errs
}

// stop ends the thread; every process must have ended.
func (s *spawner) stop() { s.once.Do(func() { close(s.jobs) }) }
