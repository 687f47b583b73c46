package control

import (
	"iter"
	"strings"
	"testing"
	"time"
)

// slowDisk is a LastGood that takes so long for all objects that the next have to wait.
type slowDisk struct{}

func (slowDisk) Replace(iter.Seq[Object]) error      { time.Sleep(2 * saveInterval / saveShare); return nil }
func (slowDisk) Append(iter.Seq2[Key, Object]) error { return nil }
func (slowDisk) Long() bool                          { return false }

// A daemon that starts before the machine's clock is set may see it put back by years, and
// saves all the same. No test can set the clock; a time that follows the monotonic one
// prints so (time.Time.String).
func TestPausesBetweenSavesHeedNoChangeOfTheClock(t *testing.T) {
	var s saver
	c := NewController(ControllerConfig{LastGood: slowDisk{}, Log: discard()})
	s.start(slowDisk{}, discard())
	s.stop()
	if err := s.save(unsaved{listed: true}, nil); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	c.Restore(nil)
	next := s.offer(c, ended)
	if next.Sub(ended) < saveInterval || !strings.Contains(next.String(), " m=+") {
		t.Errorf("a save ended at %v; the next is due at %v: want %v later at least, by the monotonic clock", ended, next, saveInterval)
	}
}
