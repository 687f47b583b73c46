package api

import (
	"errors"
	"fmt"
)

// Code says what kind of failure a call's is (gRPC, Status codes). Those that aren't named
// here are passed on as they came.
type Code uint32

// Codes that callers tell apart.
const (
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	AlreadyExists      Code = 6
	PermissionDenied   Code = 7
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	Internal           Code = 13
	Unavailable        Code = 14
)

// Error is a call that was made and failed: the daemon's own answer, or, with Unavailable
// and DeadlineExceeded, none. In that case the daemon may have done what was asked.
type Error struct {
	Code    Code
	Message string
	Cause   error // why there was no answer; nil: there was one
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("daemon: no answer: %v", e.Cause)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// CodeOf is the code of a call's error, zero if it isn't one.
func CodeOf(err error) Code {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return 0
}
