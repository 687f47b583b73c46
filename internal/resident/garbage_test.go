package resident

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestMuchThatIsLiveLeavesLittleGarbage(t *testing.T) {
	for _, tt := range []struct {
		liveMB uint64
		want   int
	}{{0, 100}, {20, 100}, {48, 100}, {96, 50}, {192, 25}, {1000, 20}} {
		if got := percent(tt.liveMB << 20); got != tt.want {
			t.Errorf("with %d MB live: %d %%, want %d %%", tt.liveMB, got, tt.want)
		}
	}
}

func TestTheCollectorFollowsWhatIsLive(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(mostPercent))
	BoundGarbage()
	becomes := func(want func(int) bool, what string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; runtime.GC() {
			is := debug.SetGCPercent(mostPercent)
			debug.SetGCPercent(is)
			if want(is) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d %%", what, is)
			}
		}
	}
	much := make([]byte, 200<<20)
	becomes(func(p int) bool { return p < 30 }, "200 MB are live")
	runtime.KeepAlive(much)
	becomes(func(p int) bool { return p == mostPercent }, "they are not")
}
