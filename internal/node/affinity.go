package node

import (
	"log/slog"

	"vswitch/internal/fdstore"
	"vswitch/vswitch/affinity"
	"vswitch/vswitch/gateway"
)

// openAffinity takes over what the process before this one remembered of services' clients,
// with who keeps descriptors or else at path, or makes a memory for it.
func openAffinity(kept fdstore.Store, path string, log *slog.Logger) (*affinity.Memory, error) {
	h := heirloom[*affinity.Memory]{
		name: affinityName, loss: "clients of services with affinity are given an endpoint afresh",
		new: affinity.New, make: affinity.Create,
		open: func(fd int) (*affinity.Memory, int, int, error) {
			tick, err := gateway.TickNow()
			if err != nil {
				return nil, 0, 0, err
			}
			m, r, err := affinity.Open(fd, tick)
			return m, r.Kept, r.Discarded, err
		},
	}
	return h.take(kept, path, log)
}
