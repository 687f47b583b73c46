package lasting

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/lasting/lastingtest"
)

func TestFilesThatAreUnsuitable(t *testing.T) {
	for _, tt := range []struct {
		name string
		dir  func(*testing.T) string
		mode uint32
		size int64
		want string
		is   error
	}{
		{"a file that is a disk's", func(t *testing.T) string { return t.TempDir() }, 0o600, 0, "tmpfs", ErrUnsuitable},
		{"one that others can open", lastingtest.Tmpfs, 0o644, 0, "this user alone", nil},
		{"one that is not empty", lastingtest.Tmpfs, 0o600, 5, "5 bytes", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(tt.dir(t), "memory")
			fd := lastingtest.File(t, path, tt.mode)
			defer unix.Close(fd)
			if err := unix.Ftruncate(fd, tt.size); err != nil {
				t.Fatal(err)
			}
			_, err := Create(fd, 4096)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestAFileWithoutRoomIsRefused asks for more than the tmpfs has left: half of what
// any machine's has would be a page fault that kills, sooner or later.
func TestAFileWithoutRoomIsRefused(t *testing.T) {
	fd := lastingtest.File(t, filepath.Join(lastingtest.Tmpfs(t), "memory"), 0o600)
	defer unix.Close(fd)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		t.Fatal(err)
	}
	if fs.Blocks == 0 {
		t.Skip("this tmpfs has no limit")
	}
	room := int64(fs.Bavail) * fs.Bsize
	if err := checkFile(fd, &st, room+1<<30); !errors.Is(err, ErrUnsuitable) {
		t.Errorf("%v, want ErrUnsuitable", err)
	}
	if err := checkFile(fd, &st, 4096); err != nil {
		t.Error(err)
	}
}
