package api

import (
	"strings"
	"testing"

	"vswitch/internal/account"
)

// The directories are package account's to test.
func TestDefaultSocket(t *testing.T) {
	want := "/run/vswitch/vswitch.sock"
	if !account.Own().Root {
		dir := t.TempDir()
		t.Setenv("XDG_RUNTIME_DIR", dir)
		want = dir + "/vswitch/vswitch.sock"
	}
	if got, err := DefaultSocket(); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
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
