package keeper

import (
	"errors"
	"testing"
)

// fakeStore counts.
type fakeStore struct{ starts, closed, released int }

func (f *fakeStore) Close()   { f.closed++ }
func (f *fakeStore) Release() { f.released++ }

func TestTheFirstChildThatAsksHasTheStoreStarted(t *testing.T) {
	var f fakeStore
	refusal := errors.New("no port is free")
	s := embedded{start: func() (Embedded, error) {
		if f.starts++; f.starts == 1 {
			return nil, refusal
		}
		return &f, nil
	}}
	seen := func() fakeStore { // stores are started under the lock, by another goroutine
		s.mu.Lock()
		defer s.mu.Unlock()
		return f
	}
	c := pairOf(t, &child{embedded: &s})
	if err := c.StartStore(); err == nil || err.Error() != "keeper: "+refusal.Error() {
		t.Errorf("a store that can't be started: %v, want %v", err, refusal)
	}
	for range 2 { // the second is a successor's
		if err := c.StartStore(); err != nil {
			t.Fatal(err)
		}
	}
	s.end()
	s.end()
	if want := (fakeStore{starts: 2, closed: 1}); seen() != want {
		t.Errorf("%+v, want %+v", seen(), want)
	}
	if err := c.StartStore(); err != nil {
		t.Fatal(err)
	}
	s.leave() // to another keeper
	s.end()
	if want := (fakeStore{starts: 3, closed: 1, released: 1}); seen() != want {
		t.Errorf("%+v, want %+v", seen(), want)
	}
	if err := pairOf(t, &child{embedded: &embedded{}}).StartStore(); err == nil {
		t.Error("a keeper without a store started one")
	}
}
