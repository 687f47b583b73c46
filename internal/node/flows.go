package node

import (
	"log/slog"

	"vswitch/internal/fdstore"
	"vswitch/vswitch"
	"vswitch/vswitch/flow"
)

// openFlows takes over the flow table of the process before this one, with who keeps
// descriptors or else at path, or makes one.
func openFlows(kept fdstore.Store, path string, cfg flow.Config, log *slog.Logger) (*flow.Table, error) {
	h := heirloom[*flow.Table]{
		name: flowsName, loss: "connections to services are refused with a reset and made anew",
		new:  func() (*flow.Table, error) { return flow.New(cfg) },
		make: func(fd int) (*flow.Table, error) { return flow.Create(fd, cfg) },
		open: func(fd int) (*flow.Table, int, int, error) {
			tick, err := vswitch.TickNow()
			if err != nil {
				return nil, 0, 0, err
			}
			t, r, err := flow.Open(fd, cfg, tick)
			return t, r.Kept, r.Discarded, err
		},
	}
	return h.take(kept, path, log)
}
