package flow

import (
	"math/rand/v2"
	"sync"
	"testing"

	"vswitch/internal/wire"
)

func piece(src, id, port uint16) wire.Headers {
	return wire.Headers{
		Src: wire.AddrFrom4([]byte{10, 0, byte(src >> 8), byte(src)}), Dst: wire.AddrFrom4([]byte{10, 9, 9, 9}),
		Proto: wire.ProtoUDP, FragID: uint32(id), SrcPort: port, DstPort: 53, HasL4: true, Fragment: true, MoreFrags: true,
	}
}

func newTestFragments() *Fragments {
	var key hashKey
	for i := range key {
		key[i] = rand.Uint64()
	}
	return newFragments(&key)
}

func TestFragmentsFindTheTuple(t *testing.T) {
	fs := newTestFragments()
	first := piece(1, 7, 4000)
	fs.Note(&first, 10)
	later := first
	later.SrcPort, later.DstPort = 0, 0
	var k Key
	if !fs.Find(&later, 10, &k) || k != KeyOf(&first) {
		t.Fatalf("found %+v, want %+v", k, KeyOf(&first))
	}
	for name, change := range map[string]func(h *wire.Headers){
		"identification": func(h *wire.Headers) { h.FragID++ },
		"source":         func(h *wire.Headers) { h.Src[15]++ },
		"destination":    func(h *wire.Headers) { h.Dst[15]++ },
		"protocol":       func(h *wire.Headers) { h.Proto = wire.ProtoTCP },
	} {
		other := later
		change(&other)
		if fs.Find(&other, 10, &k) {
			t.Errorf("found by another %s", name)
		}
	}
	if !fs.Find(&later, 9, &k) {
		t.Error("not found by a worker that is a tick behind")
	}
	if !fs.Find(&later, 10+FragmentTicks-1, &k) || fs.Find(&later, 10+FragmentTicks, &k) {
		t.Errorf("the first fragment does not speak for %d ticks", FragmentTicks)
	}
	again := first
	again.SrcPort = 4001 // the identification is used again by another flow
	fs.Note(&again, 11)
	if !fs.Find(&later, 11, &k) || k.SrcPort != 4001 {
		t.Errorf("found port %d, want that of the latest first fragment", k.SrcPort)
	}
}

// The protocol that an IPv6 fragment names may be an extension header's.
func TestFragmentsOfIPv6IgnoreTheNextHeader(t *testing.T) {
	fs := newTestFragments()
	first := piece(1, 7, 4000)
	first.V6 = true
	fs.Note(&first, 1)
	later := first
	later.Proto = wire.ProtoDstOpts
	var k Key
	if !fs.Find(&later, 1, &k) || k.Proto != wire.ProtoUDP {
		t.Errorf("found %+v", k)
	}
}

// Whoever sends countless first fragments loses its own and few others'.
func TestFragmentsConfineASource(t *testing.T) {
	fs := newTestFragments()
	const victims = 400
	for i := range uint16(victims) {
		h := piece(100+i, 1, 5000)
		fs.Note(&h, 1)
	}
	for id := range uint16(60000) {
		h := piece(1, id, id)
		fs.Note(&h, 2)
	}
	lost := 0
	for i := range uint16(victims) {
		h := piece(100+i, 1, 0)
		var k Key
		if !fs.Find(&h, 2, &k) {
			lost++
		}
	}
	// 400 in 512 sets: the attacker's own holds about one of them; 16 by the wildest chance.
	if lost > 16 {
		t.Errorf("%d of %d others' datagrams were forgotten", lost, victims)
	}
}

// Workers note and find at once; nobody ever sees another datagram's tuple.
// Each source's port follows from its identification.
func TestFragmentsConcurrently(t *testing.T) {
	fs := newTestFragments()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range uint16(20000) {
				src, id := i%3, i%40
				h := piece(src, id, src<<8|id)
				fs.Note(&h, uint32(i/1000))
				later := piece(src, (id+1)%40, 0)
				var k Key
				if fs.Find(&later, uint32(i/1000), &k) && k.SrcPort != src<<8|(id+1)%40 {
					t.Errorf("source %d id %d has port %#x", src, (id+1)%40, k.SrcPort)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestFragmentsAllocateNothing(t *testing.T) {
	fs := newTestFragments()
	h := piece(1, 2, 3)
	var k Key
	if n := testing.AllocsPerRun(100, func() { h.FragID++; fs.Note(&h, 1); fs.Find(&h, 1, &k) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
