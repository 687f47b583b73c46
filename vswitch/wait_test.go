package vswitch

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func newPoller(slots int32) *poller {
	s := new(atomic.Int32)
	s.Store(slots)
	return &poller{slots: s}
}

func TestPollingStopsWhereItDoesNotPay(t *testing.T) {
	p := newPoller(1)
	if p.begin() {
		t.Fatal("a new worker polls")
	}
	p.waited(10 * time.Microsecond)
	looks := 0
	for ; p.begin(); looks++ {
		if looks > 10 {
			t.Fatal("fruitless looks do not end")
		}
		p.fruitless()
		p.end()
		p.waited(10 * time.Millisecond)
	}
	if looks == 0 {
		t.Error("a short wait did not start polling")
	}
}

func TestPollingGoesOnWhereItPays(t *testing.T) {
	p := newPoller(1)
	for range 100 {
		p.waited(20 * time.Microsecond)
		if !p.begin() {
			t.Fatal("polling ended though every wait was short")
		}
		p.end()
	}
	// Traffic whose gaps are a little too long must not keep it going.
	for range 10 {
		if p.begin() {
			p.fruitless()
			p.end()
		}
		p.waited(100 * time.Microsecond)
	}
	if p.begin() {
		t.Error("polling goes on though no look was ever fruitful")
	}
}

func TestPollersShareTheirSlots(t *testing.T) {
	a := newPoller(1)
	b := &poller{slots: a.slots}
	a.waited(0)
	b.waited(0)
	if !a.begin() || b.begin() {
		t.Fatal("one slot, and not exactly one poller")
	}
	a.end()
	if !b.begin() {
		t.Error("the slot was not given back")
	}
}

func TestAWorkerLetsRunWhatItWoke(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // nobody else can
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := worker{woke: true}
	var ran atomic.Bool
	go ran.Store(true)
	w.letRun()
	if !ran.Load() || w.woke {
		t.Errorf("what the worker woke has run: %v; it would let it run again: %v", ran.Load(), w.woke)
	}
}
