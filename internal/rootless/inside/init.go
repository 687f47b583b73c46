package inside

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"vswitch/internal/resident"
)

// As the first process of a PID namespace this one stays, as its init: it waits for
// whoever has lost his parent, such as what watches over a container, and with its
// end all processes of the namespace end.

// passedOn are the signals that the command gets.
var passedOn = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// beInit starts the command and returns, once it has ended, with the code to exit
// with. started is called in between.
func beInit(path string, command []string, started func()) (code int, err error) {
	// Before there is a command: a signal without a handler doesn't reach an init.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	pid, err := syscall.ForkExec(path, command, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, &Error{fmt.Sprintf("%s: %v", path, err), codeNoExec}
	}
	started()
	_ = resident.Trim() // it stays, and needs next to nothing
	go func() {
		for s := range signals {
			if !FromTerminal(s) {
				_ = unix.Kill(pid, s.(syscall.Signal)) // it may have ended
			}
		}
	}()
	for {
		var status unix.WaitStatus
		switch who, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case who != pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil // as shells have it
		case status.Exited():
			return status.ExitStatus(), nil
		}
	}
}

// FromTerminal reports whether a signal came by a key, and so has reached the command
// as well: both are in the terminal's foreground.
func FromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGTSTP {
		return false
	}
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
