package upkeep

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// thing is an object that a test takes away, and may forbid to mend.
type thing struct {
	wrong, stuck error
	mended       int
}

func (f *thing) check() error { return f.wrong }

func (f *thing) mend() error {
	if f.stuck != nil {
		return f.stuck
	}
	f.mended++
	f.wrong = nil
	return nil
}

func TestWhatIsTakenAwayIsMendedOrReportedOnce(t *testing.T) {
	var log bytes.Buffer
	file, route := &thing{}, &thing{}
	w := New(slog.New(slog.NewTextHandler(&log, nil)),
		Object{Name: "file", Check: file.check, Mend: file.mend},
		Object{Name: "route", Check: route.check})
	begin := time.Unix(1000, 0)
	now := begin
	gone, other, denied := errors.New("gone"), errors.New("another's"), errors.New("denied")
	for _, step := range []struct {
		name        string
		do          func()
		file, route Status
		says        string // of this look alone; empty: nothing
	}{
		{"all is well", func() {}, Status{}, Status{}, ""},
		{"the file goes", func() { file.wrong = gone }, Status{Found: 1, Mended: 1}, Status{}, "mended"},
		{"all is well again", func() {}, Status{Found: 1, Mended: 1}, Status{}, ""},
		{"the route goes, which can't be mended", func() { route.wrong = gone },
			Status{Found: 1, Mended: 1}, Status{Found: 1, Problem: "gone", Since: begin.Add(3 * time.Second)}, "level=ERROR"},
		{"it is still gone", func() {},
			Status{Found: 1, Mended: 1}, Status{Found: 1, Problem: "gone", Since: begin.Add(3 * time.Second)}, ""},
		{"something else is wrong with it", func() { route.wrong = other },
			Status{Found: 1, Mended: 1}, Status{Found: 1, Problem: "another's", Since: begin.Add(3 * time.Second)}, "another's"},
		{"somebody puts it back", func() { route.wrong = nil }, Status{Found: 1, Mended: 1}, Status{Found: 1}, "in order again"},
		{"the file goes and can't be put back", func() { file.wrong, file.stuck = gone, denied },
			Status{Found: 2, Mended: 1, Problem: "denied", Since: begin.Add(7 * time.Second)}, Status{Found: 1}, "denied"},
		{"now it can", func() { file.stuck = nil }, Status{Found: 2, Mended: 2}, Status{Found: 1}, "mended"},
	} {
		step.do()
		log.Reset()
		w.Look(now)
		now = now.Add(time.Second)
		step.file.Object, step.route.Object = "file", "route"
		if got := w.Status(); got[0] != step.file || got[1] != step.route {
			t.Errorf("%s:\n got %+v\nwant %+v, %+v", step.name, got, step.file, step.route)
		}
		if said := log.String(); !strings.Contains(said, step.says) || (step.says == "") != (said == "") {
			t.Errorf("%s: the log says %q, want %q", step.name, said, step.says)
		}
	}
	if file.mended != 2 {
		t.Errorf("mended %d times, want 2", file.mended)
	}
}

func TestMendingThatDoesNotHelpIsNoMending(t *testing.T) {
	always := errors.New("still wrong")
	w := New(slog.New(slog.DiscardHandler), Object{
		Name: "x", Check: func() error { return always }, Mend: func() error { return nil },
	})
	w.Look(time.Unix(1, 0))
	if s := w.Status()[0]; s.Mended != 0 || s.Problem != always.Error() {
		t.Errorf("%+v, want it unmended", s)
	}
}

func TestWhatIsTakenAwayIsMendedWithinAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		file := Object{
			Name:  "file",
			Check: func() error { return map[bool]error{true: errors.New("gone")}[gone.Load()] },
			Mend:  func() error { gone.Store(false); return nil },
		}
		w := New(slog.New(slog.DiscardHandler), file)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		gone.Store(true)
		time.Sleep(Interval)
		synctest.Wait()
		if s := w.Status()[0]; s.Mended != 1 {
			t.Errorf("after %v: %+v", Interval, s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
