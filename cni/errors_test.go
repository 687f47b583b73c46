package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"vswitch/control/api"
	"vswitch/internal/fdpass"
)

func TestDaemonErrorsHaveTheCodeARuntimeActsOn(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want uint
	}{
		{"no socket", &os.PathError{Op: "dial", Err: syscall.ENOENT}, 11},
		{"nobody listens", fmt.Errorf("daemon: %w", syscall.ECONNREFUSED), 11},
		{"it went away", &api.Error{Code: api.Unavailable, Message: "closing"}, 11},
		{"it takes too long", &api.Error{Code: api.DeadlineExceeded, Message: "late"}, 11},
		{"the connection takes too long", context.DeadlineExceeded, 11},
		{"it died before it answered", fmt.Errorf("read answer: %w", io.EOF), 11},
		{"no address is free", &api.Error{Code: api.ResourceExhausted, Message: "full"}, 11},
		{"no pod CIDR yet", &api.Error{Code: api.FailedPrecondition, Message: "no CIDR"}, 11},
		{"it exists", &api.Error{Code: api.AlreadyExists, Message: "twice"}, errAttached},
		{"it doesn't like a field", &api.Error{Code: api.InvalidArgument, Message: "bad"}, 7},
		{"another user's socket", &os.PathError{Op: "dial", Err: syscall.EACCES}, 5},
		{"it refused the queues", &fdpass.RefusedError{Text: "unknown token"}, 11},
		{"anything else", errors.New("odd"), 999},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := daemonError("what failed", tt.err)
			if e.Code != tt.want {
				t.Errorf("code %d, want %d", e.Code, tt.want)
			}
			if e.Msg != "what failed" || e.Details != tt.err.Error() {
				t.Errorf("message %q, details %q", e.Msg, e.Details)
			}
		})
	}
}

func TestOnlyAnAbsentDaemonIsTakenForAbsent(t *testing.T) {
	for _, err := range []error{
		&api.Error{Code: api.Unavailable, Message: ""}, context.DeadlineExceeded, syscall.EACCES, syscall.EAGAIN, io.EOF, nil,
	} {
		if absentDaemon(err) {
			t.Errorf("%v is taken for an absent daemon: a tombstone would never be read", err)
		}
	}
}

func TestStepsAreUndoneLastFirst(t *testing.T) {
	var log []string
	note := func(what string, err error) func() error {
		return func() error { log = append(log, what); return err }
	}
	steps := []step{
		{"a", note("a", nil), note("undo a", nil)},
		{"b", note("b", nil), note("undo b", errors.New("stuck"))},
		{"c", note("c", nil), nil},
		{"d", note("d", errors.New("broken")), note("undo d", nil)},
		{"e", note("e", nil), note("undo e", nil)},
	}
	err := (&plugin{}).run(steps)
	if got, want := strings.Join(log, ", "), "a, b, c, d, undo b, undo a"; got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
	if err == nil || err.Error() != "d: broken; undo b: stuck" {
		t.Errorf("got %q", err)
	}
}
