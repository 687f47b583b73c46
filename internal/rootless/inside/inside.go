// Package inside is what runs in the namespaces that `vswitch rootless` makes or
// joins: it makes the interface, passes its queues out, and becomes the command, or
// the init of a container engine.
//
// It is all that needs privilege there, which root of a user namespace has over its
// own network. It decides nothing: the plan comes from outside (protocol.go). What
// it leaves is the interface, whose queues it no longer holds, and in a mount
// namespace of its own /etc/resolv.conf and what Setup says.
package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"vswitch/internal/sockdiag"
)

// Exit codes as shells have them.
const (
	codeFailed    = 125 // as container engines have it: not the command's own
	codeNoExec    = 126
	codeNoCommand = 127
)

// AwaitIDs waits until the ids of this process's user namespace are mapped, and
// becomes self with args, which has all capabilities there: a program that starts
// before it is root has none.
func AwaitIDs(self string, args []string) error {
	if n, err := unix.Read(ConnFD, make([]byte, 64)); err != nil || n == 0 {
		return errors.Join(errors.New("who started this namespace has ended"), err)
	}
	return unix.Exec(self, append([]string{self}, args...), os.Environ())
}

// Become makes the interface as told and becomes the command, or, for a container
// engine, its init until it ends, and returns its exit code. Otherwise it returns only
// if it could not, with no error once it has told outside why.
func Become(command []string) (code int, err error) {
	// What prctl sets belongs to the thread, and the thread that calls exec stays.
	runtime.LockOSThread()
	conn, err := NewConn()
	if err != nil {
		return codeFailed, err
	}
	code, err = become(conn, command)
	if err != nil {
		return codeFailed, tellOutside(conn, err)
	}
	return code, nil
}

// Join makes the interface as told, in the namespace that this process was started
// in. It returns an error only if it could not tell it outside.
func Join() error {
	runtime.LockOSThread()
	conn, err := NewConn()
	if err != nil {
		return err
	}
	m, _, err := conn.Receive()
	if err == nil {
		err = Make(conn, &m)
	}
	if err == nil {
		return nil
	}
	return tellOutside(conn, err)
}

// tellOutside returns nil once an error has been told.
func tellOutside(conn *Conn, err error) error {
	tell := Message{Error: err.Error(), Code: codeFailed}
	var told *Error
	if errors.As(err, &told) {
		tell.Code = told.Code
	}
	if conn.Send(tell) == nil {
		return nil
	}
	return err
}

func become(conn *Conn, command []string) (code int, err error) {
	// Killed when the one outside ends. Should it have ended already, the connection
	// says so.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return 0, fmt.Errorf("prctl PR_SET_PDEATHSIG: %w", err)
	}
	m, _, err := conn.Receive()
	if err != nil {
		return 0, err
	}
	path, err := find(command[0])
	if err != nil {
		return 0, err
	}
	// Whoever is outside reads nothing between "made" and the command's beginning.
	if err := m.Setup.do(); err != nil {
		return 0, err
	}
	if err := Make(conn, &m); err != nil {
		return 0, err
	}
	if _, _, err := conn.Receive(); err != nil { // begin
		return 0, err
	}
	if m.Setup.Engine {
		return beInit(path, command, func() { conn.Close() })
	}
	err = unix.Exec(path, command, os.Environ())
	return 0, &Error{fmt.Sprintf("%s: %v", path, err), codeNoExec}
}

func find(command string) (string, error) {
	path, err := exec.LookPath(command)
	switch {
	case err == nil, errors.Is(err, exec.ErrDot):
		return path, nil
	case errors.Is(err, os.ErrPermission):
		return "", &Error{fmt.Sprintf("%s: %v", command, err), codeNoExec}
	}
	return "", &Error{fmt.Sprintf("%s: no such command", command), codeNoCommand}
}

// Make makes the interface in the namespace of the calling thread, and passes its
// queues, and what lists listening sockets, out.
func Make(conn *Conn, m *Message) error {
	dev, err := configure(m.Plan, m.Setup)
	if err != nil {
		return fmt.Errorf("interface %s: %w", m.Plan.Interface, err)
	}
	defer dev.Close()
	sockets, err := sockdiag.Open()
	if err != nil {
		return err
	}
	defer unix.Close(sockets)
	return conn.Send(Message{Made: true, Features: dev.Features}, append(dev.FDs, sockets)...)
}
