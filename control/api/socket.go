package api

import (
	"fmt"
	"path/filepath"
	"time"

	"vswitch/internal/account"
)

const (
	// SocketMode is the mode of both sockets: whoever may dial is the daemon's
	// own user or root.
	SocketMode = 0o600

	// PendingTimeout is how long a daemon keeps an attachment whose queues have
	// not come, so that a plugin killed half-way can't hold addresses for ever.
	// An ADD takes milliseconds; runtimes give up on one after 2 to 4 minutes.
	PendingTimeout = 5 * time.Minute

	// maxSocketPathBytes is sun_path (unix(7)) less its terminating zero, less
	// the suffix of the fd socket.
	maxSocketPathBytes = 108 - 1 - len(fdSuffix)

	fdSuffix = ".fds"
)

// DefaultSocket is where a daemon listens and its clients look unless told
// otherwise: /run/vswitch/vswitch.sock for root, else the same in the user's runtime
// directory, for root of the user's namespaces too. The error says why a user has
// none.
func DefaultSocket() (string, error) {
	dir, err := account.Own().RuntimeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vswitch", "vswitch.sock"), nil
}

// FDSocket is the path of the fd socket that goes with an API socket.
func FDSocket(socket string) string { return socket + fdSuffix }

// CheckSocketPath says what is wrong with a socket path, nil if nothing is.
func CheckSocketPath(socket string) error {
	switch {
	case !filepath.IsAbs(socket):
		return fmt.Errorf("socket %q: want an absolute path", socket)
	case len(socket) > maxSocketPathBytes:
		return fmt.Errorf("socket %q: %d bytes long; a unix socket's path has at most %d here",
			socket, len(socket), maxSocketPathBytes)
	}
	return nil
}
