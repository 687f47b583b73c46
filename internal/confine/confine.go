// Package confine has a process give up what it doesn't need, for good:
// capabilities (capabilities(7)), gaining any by exec (PR_SET_NO_NEW_PRIVS), system
// calls (seccomp(2)) and files (landlock(7)).
//
// Dataplane, Keeper and Store are the rights of the daemon's three processes. A
// process calls Apply on itself once, at its start, for all of its threads; what it
// starts inherits the bounds. Descriptors that are open already stay as they are.
//
// It changes no user id: root without capabilities still owns root's files, which
// is what Landlock is for.
package confine

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mode says how strictly rights are given up.
type Mode string

const (
	// On answers calls that are off the list with EPERM, and the kernel's log names them.
	On Mode = "on"
	// Off gives up nothing.
	Off Mode = "off"
	// Trap ends the process at a call off the list with a stack trace (SIGSYS): for tests.
	Trap Mode = "trap"
)

// Modes are all there are.
var Modes = []Mode{On, Off, Trap}

// Rights are what a process keeps.
type Rights struct {
	Capabilities []int   // unix.CAP_*, of those it has; none: all five sets are emptied
	Calls        Calls   // system calls
	Files        []Files // what it may open; what isn't below one of these it may not
}

// Files is a file, or a directory with all below it, that is there when Apply is
// called. Rights are bound to it, not to its name: what replaces it is another.
type Files struct {
	Path   string
	Access Access
}

// Access is what may be done with files.
type Access uint8

const (
	Read    Access = 1 << iota // open for reading, list
	Write                      // open for writing, make, rename, remove; sockets too
	Execute                    // run as a program
)

// NeedsKernel is what this kernel does not have, so that a bound is not set.
type NeedsKernel struct {
	What string // the bound
	Want string // what has it
	Err  error  // what the kernel said
}

func (e *NeedsKernel) Error() string { return fmt.Sprintf("%s needs %s: %v", e.What, e.Want, e.Err) }
func (e *NeedsKernel) Unwrap() error { return e.Err }

// Apply gives up all but r, for every thread of this process. What the kernel does
// not have is left out and returned as lacks; an error is a bound that this kernel has
// and that could not be set: the process is then confined in part and should end.
func Apply(r Rights, m Mode) (lacks []*NeedsKernel, err error) {
	if m == Off {
		return nil, nil
	}
	_, _ = time.Now().Zone() // has package time read the zone's file while it may
	if usesCgo() {
		return nil, errors.New("confine: this program was built with cgo, whose threads it can't reach: build it with CGO_ENABLED=0")
	}
	if err := onAllThreads("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return nil, err
	}
	if err := dropCapabilities(r.Capabilities); err != nil {
		return nil, err
	}
	for _, bound := range []func() error{
		func() error { return restrictFiles(r.Files) },
		func() error { return r.Calls.install(m) },
	} {
		var lack *NeedsKernel
		if err := bound(); errors.As(err, &lack) {
			lacks = append(lacks, lack)
		} else if err != nil {
			return lacks, err
		}
	}
	return lacks, nil
}

// usesCgo reports whether threads may run that the Go runtime does not know of.
func usesCgo() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0)
	return errno == syscall.ENOTSUP
}

// onAllThreads makes a system call in every thread. What an argument points to lies on
// the heap for as long: a stack moves when it grows.
//
//go:uintptrescapes
func onAllThreads(what string, nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := syscall.AllThreadsSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return fmt.Errorf("confine: %s: %w", what, errno)
	}
	return nil
}
