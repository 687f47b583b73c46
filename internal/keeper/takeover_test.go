package keeper

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// at lets keepers of a test take over from each other.
func at(socket string, takeOver bool) func(*Config) {
	return func(c *Config) { c.Socket, c.TakeOver = socket, takeOver }
}

func TestATakeOverLeavesAllToTheNewKeeper(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	old := start(t, always("works"), at(socket, false))
	old.hears("begins")
	pid := old.hears("ready")
	var next *run
	for range 3 { // each from the one before
		next = start(t, always("works"), at(socket, true))
		if got := old.hears(fmt.Sprintf("told %d", HandOver)); got != pid {
			t.Errorf("process %d was told to hand over, want %d", got, pid)
		}
		next.hears("begins")
		next.hears("finds kept")
		pid = next.hears("ready")
		next.logs("taken over")
		if !old.takesOver {
			old.ends(nil)
		} else {
			defer old.ends(nil)
			defer old.stop() // it has stayed
		}
		old = next
	}
	// What it took it holds by itself.
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next.hears("begins")
	next.hears("finds kept")
	next.hears("ready")
	next.stop()
	next.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	next.ends(nil)
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

// TestATakeOverThatFailsLeavesThePlace is about a new keeper whose child ends before it
// is ready, ahead of its turn and in it.
func TestATakeOverThatFailsLeavesThePlace(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	old := start(t, always("works"), at(socket, false))
	old.hears("begins")
	old.hears("ready")

	start(t, always("refuses"), at(socket, true)).ends(&ExitError{3})
	select {
	case line := <-old.lines:
		t.Fatalf("the old one says %q of a new one that refused at once", line)
	default:
	}

	next := start(t, always("fails"), at(socket, true))
	old.hears(fmt.Sprintf("told %d", HandOver))
	next.hears("begins")
	next.ends(&ExitError{4})
	old.hears("begins") // another of its own
	old.hears("finds kept")
	old.hears("ready")
	old.stop()
	old.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	old.ends(nil)
}

func TestTakingOverFromNobodyIsAStart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	stale, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close() // as of a keeper that was killed
	r := start(t, always("works"), at(socket, true))
	r.hears("begins")
	r.hears("ready")
	r.stop()
	r.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	r.ends(nil)
}

func TestTwoKeepersAtOneSocketAreRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	first := start(t, always("works"), at(socket, true))
	first.hears("begins")
	first.hears("ready")
	start(t, always("works"), at(socket, false)).ends(fmt.Errorf("%s: %w", socket, ErrRuns))
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != fs.FileMode(0o600) {
		t.Errorf("%v, %v: want a socket for its user alone", info.Mode(), err)
	}
	first.stop()
	first.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	first.ends(nil)
}

// TestHostileTakeOvers says what no keeper says. The one asked goes on.
func TestHostileTakeOvers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	old := start(t, always("works"), at(socket, false))
	old.hears("begins")
	old.hears("ready")
	for _, tt := range []struct {
		name string
		asks []request
		want string // of the last answer
	}{
		{"another version", []request{{Op: opHello, Version: "0"}}, `"0"`},
		{"no version", []request{{Op: opHello}}, `""`},
		{"descriptors without a word", []request{{Op: opGet, Name: "memory"}}, "hello first"},
		{"take without a word", []request{{Op: opTake}}, "hello first"},
		{"a child's request", []request{{Op: opHello, Version: takeOverVersion}, {Op: opPut, Name: "memory"}}, "turn"},
		{"taken before take", []request{{Op: opHello, Version: takeOverVersion}, {Op: opTaken}}, "turn"},
		{"descriptors before take", []request{{Op: opHello, Version: takeOverVersion}, {Op: opGet, Name: "memory"}}, "turn"},
	} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		b := &before{Client: Client{conn: conn}}
		for _, q := range tt.asks {
			_, err = b.ask(q)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want it refused with %s", tt.name, err, tt.want)
		}
		b.Close()
	}
	select {
	case line := <-old.lines:
		t.Errorf("the old child says %q", line)
	default:
	}
	old.stop()
	old.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	old.ends(nil)
}
