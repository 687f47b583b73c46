package share

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// greedy lets each holder in turn take one until none gets any.
func greedy(p *Pool[int], holders int) {
	for more := true; more; {
		more = false
		for k := range holders {
			more = p.Take(k, 1) || more
		}
	}
}

func TestGreedyHoldersLeaveAShareFree(t *testing.T) {
	for _, holders := range []int{1, 2, 3, 9} {
		const capacity = 1000
		p := New[int](capacity)
		greedy(p, holders)
		fair := int64(capacity / (holders + 1))
		for k := range holders {
			if got := p.Held(k); got < fair-1 || got > fair+1 {
				t.Errorf("%d holders: one has %d, want %d", holders, got, fair)
			}
		}
		if free := capacity - p.Taken(); free < fair-int64(holders) {
			t.Errorf("%d holders leave %d, want about %d", holders, free, fair)
		}
		if !p.Take(holders, 1) {
			t.Errorf("%d greedy holders leave nothing for a newcomer", holders)
		}
	}
}

func TestTheCapacityHolds(t *testing.T) {
	const capacity = 64
	p := New[int](capacity)
	var holders sync.WaitGroup
	for k := range 8 {
		holders.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(k)))
			var mine int64
			for range 2000 {
				if n := rng.Int64N(8); p.Take(k, n) {
					mine += n
				}
				if got := p.Taken(); got > capacity {
					t.Errorf("%d taken of %d", got, capacity)
					return
				}
				give := rng.Int64N(mine + 1)
				p.Give(k, give)
				mine -= give
			}
			p.Give(k, mine)
		})
	}
	holders.Wait()
	if got := p.Taken(); got != 0 || len(p.held) != 0 {
		t.Errorf("%d taken by %d holders after all was given back", got, len(p.held))
	}
}

func TestGivingMoreThanHeldIsABug(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	p := New[string](1)
	p.Give("a", 1)
}
