package keeper

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
	"vswitch/internal/upkeep"
)

func listenClaims(t *testing.T, log *slog.Logger) (*claims, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	c, err := listen(socket, &fdstore.Memory{}, 0, log)
	if err != nil {
		t.Fatal(err)
	}
	return c, socket
}

// One who comes at the last moment and says nothing does not hold up the end.
func TestAConnectionThatComesAsTheKeeperEndsIsClosed(t *testing.T) {
	c, _ := listenClaims(t, slog.New(slog.DiscardHandler))
	c.end() // as close begins
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		if ends[i], err = fdpass.ConnOf(fd); err != nil {
			t.Fatal(err)
		}
		defer ends[i].Close()
	}
	c.admit(ends[0])
	ended := make(chan struct{})
	go func() { c.close(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it is waited for")
	}
	if err := ends[1].SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := write(ends[1], request{Op: opHello}, nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("wrote to it: %v, want it closed", err)
	}
}

func TestASocketThatCannotBePutBackIsReportedOnce(t *testing.T) {
	var log bytes.Buffer
	c, socket := listenClaims(t, slog.New(slog.DiscardHandler))
	defer c.close()
	w := upkeep.New(slog.New(slog.NewTextHandler(&log, nil)), c.place())
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // which is not ours to remove
		t.Fatal(err)
	}
	for range 3 {
		w.Look(time.Now())
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || strings.Contains(log.String(), "mended") {
		t.Errorf("logged:\n%swant one error", log.String())
	}
	log.Reset()
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	w.Look(time.Now())
	if !strings.Contains(log.String(), "mended") {
		t.Errorf("logged:\n%swant it mended", log.String())
	}
	c.unlist()
	log.Reset()
	w.Look(time.Now())
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) || log.Len() > 0 {
		t.Errorf("given away, and yet: %v, %s", err, log.String())
	}
}
