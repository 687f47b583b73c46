// Package uptime is the clock of what outlives a process: it counts from the machine's
// start, sleep included, and so means the same to every process of one boot.
package uptime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine was started (CLOCK_BOOTTIME, clock_gettime(2)).
func Now() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("uptime: clock_gettime: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
