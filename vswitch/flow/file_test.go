//go:build !race

// With the race detector a table lies on the heap of its process, and not in its file.

package flow

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/lasting/lastingtest"
	"vswitch/internal/wire"
)

func TestATableInAFileOutlivesWhoHasItOpen(t *testing.T) {
	path := filepath.Join(lastingtest.Tmpfs(t), "flows")
	table, err := Create(lastingtest.File(t, path, 0o600), Config{})
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
	again, report, err := Open(lastingtest.File(t, path, 0), Config{}, 8)
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
