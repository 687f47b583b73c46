//go:build !race

// With the race detector a table lies on the heap of its process, and not in its file.

package flow

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

// tmpfs is a directory on one. /dev/shm is there on every Linux with a C library.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vswitch-flow")
	if err != nil {
		t.Skipf("no tmpfs that this user can write to: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openFile(t *testing.T, path string, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestATableInAFileOutlivesWhoHasItOpen(t *testing.T) {
	path := filepath.Join(tmpfs(t), "flows")
	table, err := Create(openFile(t, path, 0o600), Config{})
	if err != nil {
		t.Fatal(err)
	}
	k := Key{Src: wire.Addr{15: 1}, Dst: wire.Addr{15: 2}, SrcPort: 3, DstPort: 4, Proto: wire.ProtoTCP}
	if got := table.Insert(&Spec{Orig: k, Reply: k.Reverse()}, wire.SYN, 7); got != Inserted {
		t.Fatal(got)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	again, report, err := Open(openFile(t, path, 0), Config{}, 8)
	if err != nil || report.Kept != 1 || again.Len() != 1 {
		t.Fatalf("%+v, %v; want the one connection", report, err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	// A page or a large one for the header, the record and the counters.
	if got, all := st.Blocks*512, st.Size; got > all/4 {
		t.Errorf("one connection takes %d bytes of the tmpfs, of %d", got, all)
	}
}

func TestFilesThatHoldNoTable(t *testing.T) {
	for _, tt := range []struct {
		name string
		dir  func(*testing.T) string
		mode uint32
		size int64
		want string
		is   error
	}{
		{"a file that is a disk's", func(t *testing.T) string { return t.TempDir() }, 0o600, 0, "tmpfs", ErrUnsuitable},
		{"one that others can open", tmpfs, 0o644, 0, "this user alone", nil},
		{"one that is not empty", tmpfs, 0o600, 5, "5 bytes", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(tt.dir(t), "flows")
			fd := openFile(t, path, tt.mode)
			defer unix.Close(fd)
			if err := unix.Ftruncate(fd, tt.size); err != nil {
				t.Fatal(err)
			}
			_, err := Create(fd, Config{Connections: 1})
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestATableWithoutRoomIsRefused asks for more than the tmpfs has left: half of what
// any machine's has would be a page fault that kills, sooner or later.
func TestATableWithoutRoomIsRefused(t *testing.T) {
	fd := openFile(t, filepath.Join(tmpfs(t), "flows"), 0o600)
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
