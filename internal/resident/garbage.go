package resident

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// What a process that keeps much in memory is resident with is mostly what Go's collector
// lets lie: by default as much garbage as there is live. A node of a large cluster has
// hundreds of megabytes live, hardly any of which changes, so that more frequent
// collections cost it little. Where little is live, traffic is what makes garbage, and
// the collector is left as it is.
const (
	garbageBytes = 48 << 20 // that may lie about where more than that is live
	leastPercent = 20       // of what is live, however much that is: each collection looks at all of it
	mostPercent  = 100      // Go's own
)

// percent is how much garbage may lie about, of what is live.
func percent(liveBytes uint64) int {
	return int(min(max(garbageBytes*100/max(liveBytes, 1), leastPercent), mostPercent))
}

// BoundGarbage sets the collector's target anew after each collection, unless the
// environment variable GOGC sets it. It is called once.
func BoundGarbage() {
	if os.Getenv("GOGC") == "" {
		mark(mostPercent)
	}
}

// collected is garbage: its finalizer runs after each collection. It holds a pointer, as
// what is small and holds none shares its memory with others, which may live on.
type collected struct{ at *int }

// mark has the next collection told. was is the percentage set last.
func mark(was int) {
	c := &collected{&was}
	runtime.SetFinalizer(c, func(c *collected) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		is := percent(live[0].Value.Uint64())
		if is != *c.at {
			debug.SetGCPercent(is)
		}
		mark(is)
	})
}
