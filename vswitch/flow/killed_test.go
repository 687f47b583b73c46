//go:build !race

package flow

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

// A process that inserts and deletes at full speed is killed at any moment, and
// the next one maps what it left, many times over. It is this test binary with
// writerEnv set: the table is its descriptor 3, its reports go to descriptor 4.

const (
	writerEnv  = "VSWITCH_FLOW_TEST_WRITER"
	writers    = 2    // goroutines of it
	each       = 2000 // connections that one of them has a hand in
	perReport  = 16
	crashTable = writers * each
)

func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A report says that connections first to first+perReport-1 were inserted, or,
// beforehand, that they will be deleted. One write of so few bytes is never cut.
type crashReport struct {
	First    uint32
	Inserted bool
}

func writeUntilKilled() error {
	table, _, err := Open(3, Config{PerOwner: crashTable}, 1)
	if err != nil {
		return err
	}
	failed := make(chan error)
	for w := range uint32(writers) {
		go func() { failed <- writeFrom(table, w*each, rand.New(rand.NewPCG(rand.Uint64(), 1))) }()
	}
	return <-failed
}

// writeFrom inserts and deletes, in groups, the connections from base on.
func writeFrom(table *Table, base uint32, r *rand.Rand) error {
	reports := os.NewFile(4, "reports")
	for {
		first := base + r.Uint32N(each/perReport)*perReport
		insert := r.IntN(2) == 0
		report := crashReport{First: first, Inserted: insert}
		if !insert {
			if err := binary.Write(reports, binary.NativeEndian, report); err != nil {
				return err
			}
		}
		for i := first; i < first+perReport; i++ {
			s := numbered(i)
			var hit Hit
			if insert {
				if got := table.Insert(s, wire.SYN, 1); got != Inserted && got != Exists {
					return fmt.Errorf("insert %d: %v", i, got)
				}
			} else if table.Lookup(&s.Orig, table.Hash(&s.Orig), 1, &hit) {
				table.remove(hit.Ref)
			}
		}
		if insert {
			if err := binary.Write(reports, binary.NativeEndian, report); err != nil {
				return err
			}
		}
	}
}

func TestATableOutlivesKilledProcesses(t *testing.T) {
	const kills = 60
	table := newTable(t, Config{Connections: crashTable, PerOwner: crashTable})
	fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Close(); err != nil { // gives up the claim
		t.Fatal(err)
	}
	shared := os.NewFile(uintptr(fd), "table")
	defer shared.Close()
	there := map[uint32]bool{}
	kept := 0
	for range kills {
		runAndKill(t, shared, there)
		kept += checkAfterKill(t, shared, there)
	}
	if kept < kills*crashTable/8 {
		t.Errorf("%d connections were found in %d tables: the writers were killed too early to try anything", kept, kills)
	}
}

// runAndKill lets a process write for some milliseconds, kills it, and notes in
// there which connections it has certainly inserted and not begun to delete.
func runAndKill(t *testing.T, shared *os.File, there map[uint32]bool) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"=1")
	cmd.ExtraFiles = []*os.File{shared, w}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	in := bufio.NewReader(r)
	var report crashReport
	alive := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer alive.Stop()
	for n := 0; ; n++ {
		if err := binary.Read(in, binary.NativeEndian, &report); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if n == 0 { // it writes: from here on, any moment will do
			time.AfterFunc(rand.N(20*time.Millisecond), func() { cmd.Process.Kill() })
		}
		for i := report.First; i < report.First+perReport; i++ {
			if report.Inserted {
				there[i] = true
			} else {
				delete(there, i)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the writer ended by itself: %v", cmd.ProcessState)
	}
}

// checkAfterKill maps the table, holds it against what was reported and lets go of it.
func checkAfterKill(t *testing.T, shared *os.File, there map[uint32]bool) (kept int) {
	t.Helper()
	fd, err := unix.FcntlInt(shared.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	table, report, err := Open(fd, Config{PerOwner: crashTable}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if report.Discarded != 0 || report.Kept != table.Len() {
		t.Errorf("%+v, Len %d: a killed writer damages nothing", report, table.Len())
	}
	checkWhole(t, table)
	found := map[uint32]bool{}
	for info := range table.All() {
		i := uint32(info.Endpoint)
		if want := numbered(i); info.Orig != want.Orig || info.Reply != want.Reply || info.State != SynSent {
			t.Errorf("torn: %+v", info)
		}
		found[i] = true
	}
	for i := range there {
		if !found[i] {
			t.Errorf("connection %d was inserted and is not there", i)
		}
	}
	for i := range found {
		there[i] = true // inserted, but killed before it said so
	}
	return report.Kept
}

// While its process lives and has not closed it, nobody else maps a table.
func TestATableHasOneProcess(t *testing.T) {
	table := newTable(t, Config{Connections: crashTable, PerOwner: crashTable})
	fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	shared := os.NewFile(uintptr(fd), "table")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"=1")
	cmd.ExtraFiles = []*os.File{shared, os.Stderr}
	out, err := cmd.CombinedOutput()
	shared.Close() // and with any descriptor of it that the process closes, the claim ends
	if err == nil || !strings.Contains(string(out), "another process uses it") {
		t.Fatalf("the second process: %v, %s", err, out)
	}
}

// A copy that was taken while the table changed is worse than what any killed
// process leaves: what Open keeps of it is whole all the same.
func TestOpenOfATableInMotion(t *testing.T) {
	table := newTable(t, Config{Connections: 512, PerOwner: 512})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 100 {
				s := numbered(r.Uint32N(1000))
				var hit Hit
				if table.Lookup(&s.Orig, table.Hash(&s.Orig), 1, &hit) {
					table.remove(hit.Ref)
				} else {
					table.Insert(s, wire.SYN, 1)
				}
			}
		}
	})
	total := Report{}
	for range 300 {
		opened, report := mustOpen(t, left(t, table), Config{}, 1)
		checkWhole(t, opened)
		for info := range opened.All() {
			if want := numbered(uint32(info.Endpoint)); info.Orig != want.Orig || info.Reply != want.Reply {
				t.Errorf("torn: %+v", info)
			}
		}
		total.Kept += report.Kept
		total.Discarded += report.Discarded
	}
	close(stop)
	wg.Wait()
	t.Logf("%+v", total)
}
