package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
	"vswitch/internal/lasting"
)

// Names of tables.
const (
	flowsName    = "flows"
	affinityName = "affinity"
)

// lastingTable is what lies in memory that outlives this process.
type lastingTable interface {
	comparable
	FD() int
	Close() error
}

// heirloom says how to take over a table that the process before this one left, and
// how to make one.
type heirloom[T lastingTable] struct {
	name string                  // in the fd store, and of its file
	loss string                  // what becomes of it if the table is lost
	new  func() (T, error)       // in memory without a name, which goes with the keeper
	make func(fd int) (T, error) // in an empty file, which it takes if it succeeds
	// open is make for a table that is there, and says how many records it kept and how many
	// were no good.
	open func(fd int) (_ T, kept, discarded int, _ error)
}

// fileOf is where a node's table lies that is to outlive its keeper too. The
// instance is the state directory's: what belongs to a node that was set up anew is
// nobody's. Without a runtime directory there is none.
func fileOf(name, runtimeDir, instance string) string {
	if runtimeDir == "" {
		return ""
	}
	return filepath.Join(runtimeDir, name+"-"+instance[:8])
}

// take takes over the table that is kept, with who keeps descriptors or else at path, or
// makes one and has it kept. A table that can't be read is given up.
//
// One is made at path where that is on a tmpfs, and else in memory without a name.
func (h *heirloom[T]) take(kept fdstore.Store, path string, log *slog.Logger) (T, error) {
	var none T
	t, err := h.ofKeeper(kept, log)
	if err == nil {
		return t, nil
	}
	if !errors.Is(err, fdstore.ErrNotFound) {
		log.Error("a table is lost", "table", h.name, "effect", h.loss, "err", err)
	} else if t, err = h.at(path, log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("a table is lost", "table", h.name, "effect", h.loss, "file", path, "err", err)
		if errors.Is(err, lasting.ErrInUse) {
			path = "" // not ours to replace
		}
	}
	if t == none {
		if t, err = h.fresh(path, log); err != nil {
			return none, err
		}
	}
	if err := kept.Put(h.name, []int{t.FD()}); err != nil {
		return none, errors.Join(err, t.Close())
	}
	return t, nil
}

// ofKeeper is the table that is kept.
func (h *heirloom[T]) ofKeeper(kept fdstore.Store, log *slog.Logger) (T, error) {
	var none T
	fds, err := kept.Get(h.name)
	if err != nil {
		return none, err
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return none, fmt.Errorf("%d descriptors for one table", len(fds))
	}
	return h.in(fds[0], log)
}

// at is the table in a file; an empty path is none.
func (h *heirloom[T]) at(path string, log *slog.Logger) (T, error) {
	var none T
	if path == "" {
		return none, fs.ErrNotExist
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return none, err
	}
	return h.in(fd, log)
}

// in opens the table in fd, which it takes.
func (h *heirloom[T]) in(fd int, log *slog.Logger) (T, error) {
	for began := time.Now(); ; time.Sleep(lockPause) {
		t, kept, discarded, err := h.open(fd)
		if err == nil {
			log.Info("table taken over", "table", h.name, "kept", kept, "discarded", discarded)
			return t, nil
		}
		// A process killed a moment ago may have its claim still, as its lock.
		if !errors.Is(err, lasting.ErrInUse) || time.Since(began) > lockPatience {
			var none T
			return none, errors.Join(err, unix.Close(fd))
		}
	}
}

// fresh makes a table, at path if it may lie there. What lies there, and nobody
// uses, is of no use.
func (h *heirloom[T]) fresh(path string, log *slog.Logger) (T, error) {
	if path == "" {
		return h.new()
	}
	t, err := h.create(path)
	if err == nil {
		return t, nil
	}
	said := log.Warn
	if errors.Is(err, lasting.ErrUnsuitable) {
		said = log.Info // a matter of where it runs
	}
	said("a table has no file and is lost if the whole daemon ends", "table", h.name, "effect", h.loss, "file", path, "err", err)
	return h.new()
}

func (h *heirloom[T]) create(path string) (T, error) {
	var none T
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return none, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return none, &os.PathError{Op: "create", Path: path, Err: err}
	}
	t, err := h.make(fd)
	if err != nil {
		return none, errors.Join(err, unix.Close(fd), os.Remove(path))
	}
	return t, nil
}
