// Package fdpass carries open file descriptors from one process to another over a
// unix socket (SCM_RIGHTS, unix(7)), with one JSON message beside them.
//
// It exists because gRPC can't carry descriptors: the CNI plugin opens a pod's
// TAP and hands its queues to the daemon here. One connection is one message and
// one answer. The socket is SOCK_SEQPACKET, so that message and descriptors
// arrive together or not at all. What the descriptors are is the handler's to
// check.
package fdpass

import (
	"errors"
	"time"
)

const (
	// MaxFDs is the most descriptors of one message: the queues of one TAP.
	// Linux takes 253 (SCM_MAX_FD).
	MaxFDs = 64
	// MaxMessageBytes bounds the JSON text. A message is a few hundred bytes.
	MaxMessageBytes = 4096
	// Timeout bounds one exchange on the server, handler aside, and gives up on
	// a peer that connects and says nothing.
	Timeout = 10 * time.Second
)

// Message says what the descriptors beside it are.
type Message struct {
	// Token names the attachment, as AddPodReply gave it.
	Token string `json:"token"`
	// Features is the devices' tap.Features.
	Features uint32 `json:"features"`
}

// reply is the server's answer.
type reply struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// Cred is who is at the other end, as the kernel knows it (SO_PEERCRED).
type Cred struct {
	PID      int32
	UID, GID uint32
}

// RefusedError is the server's refusal as the client sees it.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return "refused: " + e.Text }

// ErrInUse: another process listens on the socket.
var ErrInUse = errors.New("another process listens on the socket")
