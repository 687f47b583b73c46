package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"vswitch/internal/userns"
)

// An ordinary user may own network namespaces after making a user namespace.
// A Go program can't: unshare(CLONE_NEWUSER) wants a single thread. So it runs
// itself again, as root of a new user namespace with its own mount namespace, a
// /run of its own and, if it is to, a network namespace of its own.

// insideEnv tells the second run that it is one.
const insideEnv = "VSWITCH_LAB_INSIDE"

// Privileged reports whether labs can be built by this process: root, or the
// second run that EnterUserNamespace started.
func Privileged() bool { return os.Geteuid() == 0 }

// InUserNamespace reports whether this is the run EnterUserNamespace started.
func InUserNamespace() bool { return os.Getenv(insideEnv) != "" }

// Network says which network namespace the second run is in.
type Network uintptr

const (
	NewNetwork  Network = unix.CLONE_NEWNET // one of its own, empty
	SameNetwork Network = 0                 // the first run's, over which it has no power
)

// EnterUserNamespace runs this program again, same arguments, as root of a new
// user namespace and returns its exit code. The first run then has nothing to
// do but exit with it. In the second run it prepares /run, and returns with
// second true: that run is the one to go on.
//
// err says why a user namespace can't be had and what would allow it.
func EnterUserNamespace(network Network) (code int, second bool, err error) {
	if InUserNamespace() {
		return 0, true, privateRun()
	}
	if err := userns.CheckTun(); err != nil {
		return 0, false, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false, fmt.Errorf("lab: %w", err)
	}
	c := exec.Command(self, os.Args[1:]...)
	c.Env = append(os.Environ(), insideEnv+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | uintptr(network),
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		// Should this run be killed, the second cleans up and ends.
		Pdeathsig: syscall.SIGTERM,
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts it
	defer runtime.UnlockOSThread()

	// ^C reaches the whole foreground group, the second run with it, and that one
	// cleans up; other signals are passed on. Either way this one only waits.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	if err := c.Start(); err != nil {
		return 0, false, fmt.Errorf("lab: make a user namespace: %w%s", err, userns.Hint())
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGINT {
				c.Process.Signal(s)
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, false, fmt.Errorf("lab: %w", err)
			}
			if code := c.ProcessState.ExitCode(); code >= 0 {
				return code, false, nil
			}
			return 1, false, nil // by a signal
		}
	}
}

// privateRun gives the second run a /run that it can write and nobody else sees.
func privateRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("lab: mount a private /run: %w", err)
	}
	return nil
}
