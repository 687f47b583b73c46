package apiv1

import (
	"strings"
	"testing"
)

func TestDefaultSocket(t *testing.T) {
	for _, tt := range []struct {
		name, runtimeDir string
		uid              int
		want             string
	}{
		{"root", "/run/user/0", 0, "/run/vswitch/vswitch.sock"},
		{"a user", "/run/user/1000", 1000, "/run/user/1000/vswitch/vswitch.sock"},
		{"a user without a session", "", 1000, "/run/user/1000/vswitch/vswitch.sock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := defaultSocket(tt.uid, tt.runtimeDir); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestSocketPathLeavesRoomForTheFDSocket(t *testing.T) {
	longest := "/" + strings.Repeat("s", maxSocketPathBytes-1)
	if err := CheckSocketPath(longest); err != nil {
		t.Error(err)
	}
	if n := len(FDSocket(longest)); n != 107 {
		t.Errorf("the fd socket of the longest path has %d bytes, want what the kernel takes, 107", n)
	}
	for _, path := range []string{longest + "s", "vs.sock", ""} {
		if CheckSocketPath(path) == nil {
			t.Errorf("%q is accepted", path)
		}
	}
}
