package confine

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel is given addresses of what must not move meanwhile.
func TestWhatACallPointsToIsNotOnTheStack(t *testing.T) {
	if usesCgo() {
		t.Skip("needs a program built without cgo, as the daemon is, to call on all threads (the race detector needs cgo)")
	}
	without := testing.AllocsPerRun(100, func() {
		_ = onAllThreads("getpid", unix.SYS_GETPID, 0)
	})
	with := testing.AllocsPerRun(100, func() {
		var argument [64]byte
		_ = onAllThreads("getpid", unix.SYS_GETPID, uintptr(unsafe.Pointer(&argument)))
	})
	if with != without+1 {
		t.Errorf("%v allocations, %v without an argument: it is on the stack", with, without)
	}
}
