// Package fdstore keeps file descriptors under names, beyond the life of the
// process that uses them where the implementation can.
//
// The daemon takes every descriptor that must survive it (TAP queues, sockets, the
// flow table's memory) through a Store, and so does not know who keeps them:
//
//   - keeper.Client: its parent process, which gets duplicates over a unix socket
//     (SCM_RIGHTS);
//   - sdnotify.Store, by which that parent keeps them in turn: the file descriptor
//     store of a service manager (sd_pid_notify_with_fds(3));
//   - Memory, here: the process itself, which loses them with its end.
//
// The first two share no descriptor numbers with the daemon. That is why a Store
// always works with duplicates: code that runs with Memory runs with them.
package fdstore

import (
	"errors"
	"fmt"
)

// Store keeps sets of descriptors. Methods may be called concurrently.
type Store interface {
	// Put keeps duplicates of fds under name, in order, instead of what name held
	// before. The caller keeps its own. On error name holds what it held.
	Put(name string, fds []int) error
	// Get returns duplicates, close-on-exec, that the caller owns, in the order
	// given to Put. It fails with ErrNotFound.
	Get(name string) ([]int, error)
	// Remove closes what name holds. An absent name is no error.
	Remove(name string) error
	// Names lists the names held, sorted.
	Names() ([]string, error)
}

// ErrNotFound: nothing is kept under the name.
var ErrNotFound = errors.New("no descriptors under this name")

// MaxNameBytes is systemd's limit for FDNAME.
const MaxNameBytes = 255

// CheckName refuses names that one of the implementations could not carry:
// sd_notify(3) allows ASCII without control characters and colons.
func CheckName(name string) error {
	if n := len(name); n == 0 || n > MaxNameBytes {
		return fmt.Errorf("fdstore: name has %d bytes, want 1 to %d", n, MaxNameBytes)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return fmt.Errorf("fdstore: name %q: character %q is not allowed", name, c)
		}
	}
	return nil
}
