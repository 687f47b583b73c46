package vswitch_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/flow"
)

// Ticks are the machine's, not the switch's: what one process writes into the
// flow table is as old to the next.
func TestTicksAreCountedFromTheMachinesStart(t *testing.T) {
	ticks := func() uint32 {
		var boot unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
			t.Fatal(err)
		}
		return uint32(time.Duration(boot.Nano()) / flow.TickDuration)
	}
	sw, _ := newSwitch(t, 1, nil)
	before := ticks()
	got := sw.Tick()
	if after := ticks(); got < before-1 || got > after+1 { // two clocks are read, one after the other
		t.Errorf("tick %d, want %d to %d", got, before, after)
	}
}
