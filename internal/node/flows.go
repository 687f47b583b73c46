package node

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdstore"
	"vswitch/vswitch"
	"vswitch/vswitch/flow"
)

// flowsName is the flow table's memory in the fd store.
const flowsName = "flows"

// openFlows takes over the flow table that the process before this one left, or
// makes one and has it kept. A table that can't be read is given up: connections to
// services are then refused with a reset, and made anew.
func openFlows(kept fdstore.Store, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	t, err := takeOverFlows(kept, cfg, log)
	if err == nil {
		return t, nil
	}
	if !errors.Is(err, fdstore.ErrNotFound) {
		log.Error("the flow table is lost; connections to services will be reset", "err", err)
	}
	if t, err = flow.New(cfg); err != nil {
		return nil, err
	}
	if err := kept.Put(flowsName, []int{t.FD()}); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func takeOverFlows(kept fdstore.Store, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
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
	tick, err := vswitch.TickNow()
	if err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	t, report, err := flow.Open(fds[0], cfg, tick)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	log.Info("connections taken over", "kept", report.Kept, "discarded", report.Discarded)
	return t, nil
}
