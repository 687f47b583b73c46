package embedded

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/control/statefile"
)

// identity names a process beyond doubt: process ids are used again, but not with
// the same start time in the same boot. The store writes its own under the lock of
// its directory, so that there is no moment at which it runs and can't be found.
type identity struct {
	PID    int      `json:"pid"`
	Start  uint64   `json:"start"` // clock ticks since boot, proc_pid_stat(5) field 22
	BootID string   `json:"bootID"`
	Args   []string `json:"args"` // what it was told to serve
}

func identityFile(dir string) statefile.File {
	return statefile.File{Path: filepath.Join(dir, "process.json"), Kind: "store-process", Version: 1}
}

func writeSelf(c *Config) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return identityFile(c.Dir).Write(identity{os.Getpid(), start, bootID(), c.Args()})
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %q is not understood", pid, b)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// process is a store that runs, whether this process started it or found it.
type process struct {
	pid   int
	args  []string
	pidfd int
	done  chan struct{} // closed when it has ended
}

// find looks for the store that serves dir; nil if none runs.
func find(dir string) *process {
	var id identity
	if err := identityFile(dir).Read(&id); err != nil {
		return nil // none, or damaged and set aside
	}
	if id.BootID != bootID() || id.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil
	}
	// Now that the descriptor pins the process, see whether it is the one.
	if start, err := startTime(id.PID); err != nil || start != id.Start {
		unix.Close(fd)
		return nil
	}
	p := &process{pid: id.PID, args: id.Args, pidfd: fd, done: make(chan struct{})}
	go p.watch()
	return p
}

// running reports whether a store serves dir, and what it was told.
func running(dir string) (args []string, ok bool) {
	var id identity
	if err := identityFile(dir).Read(&id); err != nil || id.BootID != bootID() {
		return nil, false
	}
	start, err := startTime(id.PID)
	return id.Args, err == nil && start == id.Start
}

// watch waits for a process that is not our child: its descriptor becomes readable
// when it ends.
func (p *process) watch() {
	defer close(p.done)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// spawn starts a store, in a session of its own: what ends the daemon's terminal or
// process group does not end the store. Its output goes to the log in dir.
func spawn(executable string, command []string, c *Config) (*process, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	log, err := openLog(logPath(c.Dir))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer log.Close()
	args := c.Args()
	cmd := exec.Command(executable, slices.Concat(command, args)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("store: start: %w", err)
	}
	p := &process{pid: cmd.Process.Pid, args: args, pidfd: -1, done: make(chan struct{})}
	if fd, err := unix.PidfdOpen(p.pid, 0); err == nil {
		p.pidfd = fd
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in its log
	}()
	return p, nil
}

// stopTimeout is how long a store may take to close its files before it is killed.
const stopTimeout = 10 * time.Second

// stop ends the process and waits until it has ended.
func (p *process) stop() {
	p.signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.signal(unix.SIGKILL)
		<-p.done
	}
}

// signal goes through the descriptor where there is one: it can't reach another
// process that got the same id.
func (p *process) signal(sig unix.Signal) {
	if p.pidfd >= 0 {
		_ = unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
		return
	}
	_ = unix.Kill(p.pid, sig)
}

func (p *process) close() {
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
	}
}
