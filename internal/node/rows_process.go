package node

import (
	"os"
	"runtime/metrics"
)

// processRow is the process that answers: what of it only it can tell.
type processRow struct {
	Name       string `json:"name"`
	PID        int    `json:"pid"`
	Goroutines uint64 `json:"goroutines"`
	HeapBytes  uint64 `json:"heapBytes"` // of objects, dead ones that were not collected yet among them
	LiveBytes  uint64 `json:"liveBytes"` // of those that the last collection found in use
}

func (v *view) processes() []any {
	samples := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples) // stops nothing, unlike runtime.ReadMemStats
	return []any{processRow{
		Name: "dataplane", PID: os.Getpid(), Goroutines: samples[0].Value.Uint64(), HeapBytes: samples[1].Value.Uint64(),
		LiveBytes: samples[2].Value.Uint64(),
	}}
}
