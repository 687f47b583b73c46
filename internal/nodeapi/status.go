package nodeapi

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	"vswitch/control/ipam"
	"vswitch/internal/attach"
	"vswitch/internal/pcapfilter"
)

// statusOf is an error as vswitch.proto promises it to callers.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	var (
		badRequest *attach.InvalidError
		badObject  *control.InvalidError
		badKind    *UnknownKindError
		badFilter  *pcapfilter.Error
		conflict   *control.ConflictError
	)
	switch {
	case errors.As(err, &badRequest), errors.As(err, &badObject), errors.As(err, &badKind), errors.As(err, &badFilter):
		return codes.InvalidArgument
	case errors.Is(err, attach.ErrExists):
		return codes.AlreadyExists
	case errors.Is(err, attach.ErrNotFound), errors.Is(err, control.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, ipam.ErrExhausted), isFull(err):
		return codes.ResourceExhausted
	case errors.Is(err, attach.ErrNotReady), errors.Is(err, attach.ErrPortUsed), errors.As(err, &conflict):
		return codes.FailedPrecondition
	case errors.Is(err, control.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return codes.Unavailable
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Internal
}

// isFull reports whether something of the machine's is used up that others may give back:
// room on a disk or of a user's on it, descriptors, memory.
func isFull(err error) bool {
	for _, full := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, full) {
			return true
		}
	}
	return false
}

func internal(err error) error { return status.Error(codes.Internal, err.Error()) }
