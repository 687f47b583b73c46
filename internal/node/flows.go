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
	"vswitch/vswitch"
	"vswitch/vswitch/flow"
)

// flowsName is the flow table's memory in the fd store.
const flowsName = "flows"

// flowsFile is where a node's flow table lies that is to outlive its keeper too. The
// instance is the state directory's: connections of a node that was set up anew are
// nobody's. Without a runtime directory there is none.
func flowsFile(runtimeDir, instance string) string {
	if runtimeDir == "" {
		return ""
	}
	return filepath.Join(runtimeDir, "flows-"+instance[:8])
}

// openFlows takes over the flow table that the process before this one left, with who
// keeps descriptors or else at path, or makes one and has it kept. A table that can't
// be read is given up: connections to services are then refused with a reset, and made
// anew.
//
// One is made at path where that is on a tmpfs, and else in memory without a name,
// which goes with the keeper.
func openFlows(kept fdstore.Store, path string, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	t, err := flowsOf(kept, cfg, log)
	if err == nil {
		return t, nil
	}
	if !errors.Is(err, fdstore.ErrNotFound) {
		log.Error("the flow table is lost; connections to services will be reset", "err", err)
	} else if t, err = flowsAt(path, cfg, log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("the flow table is lost; connections to services will be reset", "file", path, "err", err)
		if errors.Is(err, lasting.ErrInUse) {
			path = "" // not ours to replace
		}
	}
	if t == nil {
		if t, err = newFlows(path, cfg, log); err != nil {
			return nil, err
		}
	}
	if err := kept.Put(flowsName, []int{t.FD()}); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// flowsOf is the table that is kept.
func flowsOf(kept fdstore.Store, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	fds, err := kept.Get(flowsName)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("%d descriptors for one table", len(fds))
	}
	return takeFlows(fds[0], cfg, log)
}

// flowsAt is the table in a file; an empty path is none.
func flowsAt(path string, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	if path == "" {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return takeFlows(fd, cfg, log)
}

// takeFlows opens the table in fd, which it takes.
func takeFlows(fd int, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	var t *flow.Table
	var report flow.Report
	for began := time.Now(); ; time.Sleep(lockPause) {
		tick, err := vswitch.TickNow()
		if err == nil {
			t, report, err = flow.Open(fd, cfg, tick)
		}
		if err == nil {
			break
		}
		// A process killed a moment ago may have its claim still, as its lock.
		if !errors.Is(err, lasting.ErrInUse) || time.Since(began) > lockPatience {
			return nil, errors.Join(err, unix.Close(fd))
		}
	}
	log.Info("connections taken over", "kept", report.Kept, "discarded", report.Discarded)
	return t, nil
}

// newFlows makes a table, at path if it may lie there. What lies there, and nobody
// uses, is of no use.
func newFlows(path string, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	if path == "" {
		return flow.New(cfg)
	}
	t, err := createFlows(path, cfg)
	if err == nil {
		return t, nil
	}
	said := log.Warn
	if errors.Is(err, lasting.ErrUnsuitable) {
		said = log.Info // a matter of where it runs
	}
	said("connections to services will be reset if the whole daemon ends: the flow table has no file", "file", path, "err", err)
	return flow.New(cfg)
}

func createFlows(path string, cfg flow.Config) (*flow.Table, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: err}
	}
	t, err := flow.Create(fd, cfg)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd), os.Remove(path))
	}
	return t, nil
}
