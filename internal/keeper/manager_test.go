package keeper

import (
	"fmt"
	"syscall"
	"testing"
)

// told is a manager that tells what it is told.
type told chan string

func (m told) Ready() error     { m <- "ready"; return nil }
func (m told) Reloading() error { m <- "reloading"; return fmt.Errorf("out of order") }
func (m told) Stopping() error  { m <- "stopping"; return nil }

func TestTheManagerIsToldInOrder(t *testing.T) {
	m := make(told, 16)
	r := start(t, func(n int) string {
		if n == 3 {
			return "refuses"
		}
		return "works"
	}, func(c *Config) { c.Manager = m })
	hears := func(want string) {
		t.Helper()
		if got := <-m; got != want {
			t.Fatalf("the manager is told %q, want %q", got, want)
		}
	}
	hears("ready")
	r.restart <- syscall.SIGHUP
	hears("reloading")
	hears("ready")
	r.restart <- syscall.SIGHUP // refused: the one that runs is as ready as before
	hears("reloading")
	hears("ready")
	r.stop()
	hears("stopping")
	r.ends(nil)
}
