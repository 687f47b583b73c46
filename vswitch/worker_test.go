package vswitch

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A worker that has stopped has closed its descriptors: their numbers are whoever's opens
// one next, who must not find the worker's wake-ups in it.
func TestAStoppedWorkerWritesToNobody(t *testing.T) {
	d := newHandDriven(t, 1500) // its worker is stopped
	var others []int
	for range 8 { // the lowest free numbers, so the worker's are among them
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		others = append(others, fd)
	}
	d.w.stop()
	d.w.do(func() {})
	for _, fd := range others {
		var count [8]byte
		if _, err := unix.Read(fd, count[:]); err != unix.EAGAIN {
			t.Errorf("descriptor %d was written to: %x (%v)", fd, count, err)
		}
	}
}
