package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

	"vswitch/control/api"
	"vswitch/internal/fdpass"
)

// Codes of our own; those below 100 are the specification's (section 5, Error).
const (
	// errCheckFailed: CHECK found the attachment in a state it can't work in.
	errCheckFailed uint = 100
	// errAttached: ADD of an attachment that exists.
	errAttached uint = 101
)

// decodingError is code 6: what was to be read isn't what it should be.
func decodingError(what string, err error) *types.Error {
	return types.NewError(types.ErrDecodingFailure, what+": cannot decode", err.Error())
}

// unsupportedError is code 2, which has to name the key and its value.
func unsupportedError(key string, value json.RawMessage) *types.Error {
	return types.NewError(types.ErrUnsupportedField,
		fmt.Sprintf("unsupported field %q: %s", key, short(value)), "")
}

// configError is code 7: the configuration can be read but not used.
func configError(format string, args ...any) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// envError is code 4, which has to name the variable.
func envError(variable, value, want string) *types.Error {
	return types.NewError(types.ErrInvalidEnvironmentVariables,
		fmt.Sprintf("%s: %q: %s", variable, value, want), "")
}

// netnsError is code 8: CNI_NETNS isn't a namespace the plugin can work in.
func netnsError(path string, err error) *types.Error {
	return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %q: %v", path, err), "")
}

// checkError is what a CHECK reports.
func checkError(format string, args ...any) *types.Error {
	return types.NewError(errCheckFailed, fmt.Sprintf(format, args...), "")
}

// daemonError gives an error of talking to the daemon its code. A runtime
// repeats a call that failed with 11, so that is for what time can heal.
func daemonError(what string, err error) *types.Error {
	var code uint
	switch api.CodeOf(err) {
	case api.AlreadyExists:
		code = errAttached
	case api.InvalidArgument:
		code = types.ErrInvalidNetworkConfig
	case api.ResourceExhausted, api.FailedPrecondition:
		code = types.ErrTryAgainLater
	default:
		switch {
		case unreachable(err), refusedQueues(err):
			code = types.ErrTryAgainLater
		case errors.Is(err, os.ErrPermission):
			code = types.ErrIOFailure
		default:
			code = types.ErrInternal
		}
	}
	return types.NewError(code, what, err.Error())
}

// unreachable reports whether err says that no daemon answers now, rather than
// that one answered no.
func unreachable(err error) bool {
	return absentDaemon(err) || interrupted(err)
}

// refusedQueues reports whether the daemon did not take a pod's queues: it began anew
// since the lease, say, or its disk is full. The next ADD begins with another lease.
func refusedQueues(err error) bool {
	var refused *fdpass.RefusedError
	return errors.As(err, &refused)
}

// absentDaemon reports whether nothing listens on the socket.
func absentDaemon(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// interrupted reports whether an exchange ended without an answer: the daemon
// may have done what was asked, or not.
func interrupted(err error) bool {
	switch api.CodeOf(err) {
	case api.Unavailable, api.DeadlineExceeded, api.Canceled:
		return true
	}
	for _, target := range []error{
		context.DeadlineExceeded, os.ErrDeadlineExceeded, io.EOF,
		syscall.ECONNRESET, syscall.EPIPE, syscall.EAGAIN,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
