package gateway

import (
	"math/rand/v2"
	"sync"
	"testing"

	"vswitch/internal/wire"
)

// Against a map, with few keys so that tombstones and chains abound.
func TestIndexIsAMap(t *testing.T) {
	x, twin := newIndex(), map[vip]*front{}
	rng := rand.New(rand.NewPCG(1, 2))
	most := 0
	for range 200_000 {
		v := vip{addr: wire.Addr{15: byte(rng.IntN(20))}, port: uint16(rng.IntN(40)), proto: wire.ProtoTCP}
		switch rng.IntN(3) {
		case 0:
			x.remove(&v)
			delete(twin, v)
		case 1:
			f := &front{vip: v}
			x.set(f)
			twin[v] = f
		}
		if got := x.find(&v); got != twin[v] {
			t.Fatalf("%v: %p, want %p", v, got, twin[v])
		}
		if x.live != len(twin) {
			t.Fatalf("%d live, want %d", x.live, len(twin))
		}
		most = max(most, len(*x.slots.Load()))
	}
	for v, f := range twin {
		if x.find(&v) != f {
			t.Errorf("%v is lost", v)
		}
	}
	if most > 4096 {
		t.Errorf("%d slots for at most 800 keys: tombstones make it grow", most)
	}
}

// Readers see what stays, at every moment of others' coming and going.
func TestIndexWhileItChanges(t *testing.T) {
	x := newIndex()
	stays := &front{vip: vip{port: 80}}
	x.set(stays)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if x.find(&stays.vip) != stays {
					t.Error("lost from sight")
					return
				}
			}
		})
	}
	for round := range 20 {
		for port := range uint16(2000) {
			x.set(&front{vip: vip{port: 1000 + port}})
		}
		for port := range uint16(2000) {
			x.remove(&vip{port: 1000 + port})
		}
		if x.live != 1 {
			t.Errorf("round %d: %d live, want 1", round, x.live)
		}
	}
	close(stop)
	readers.Wait()
}
