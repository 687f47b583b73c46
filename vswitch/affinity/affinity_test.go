package affinity

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

const timeout = 10

// endpoints is a Choice.
type endpoints []flow.Endpoint

func (e endpoints) Has(one flow.Endpoint) bool { return slices.Contains(e, one) }
func (e endpoints) Random() flow.Endpoint      { return e[rand.IntN(len(e))] }

// choice is n endpoints that differ in all that tells them apart.
func choice(n int) (e endpoints) {
	for i := range n {
		e = append(e, flow.Endpoint{Addr: wire.Addr{0: 0xfd, 15: byte(i)}, Port: uint16(8000 + i), ID: uint64(i) << 40})
	}
	return e
}

func client(service uint64, i int) *Client {
	c := &Client{Service: service}
	binary.BigEndian.PutUint32(c.Addr[12:], 0x0a_00_00_00+uint32(i))
	return c
}

func newMemory(t testing.TB) *Memory {
	t.Helper()
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// kept counts the clients of a service, from 0 to n-1, that still have an endpoint of want.
func kept(m *Memory, service uint64, want []flow.Endpoint, from Choice, now uint32) (n int) {
	for i, w := range want {
		if e, ok := m.Look(client(service, i), from, now, timeout); ok && e == w {
			n++
		}
	}
	return n
}

func choose(m *Memory, service uint64, n int, from Choice, now uint32) []flow.Endpoint {
	var had []flow.Endpoint
	for i := range n {
		had = append(had, m.Choose(client(service, i), from, now, timeout))
	}
	return had
}

func TestAClientKeepsItsEndpoint(t *testing.T) {
	m, all := newMemory(t), choice(64)
	c := client(1, 1)
	begin := uint32(1<<32 - 15) // the clock turns over
	first := m.Choose(c, all, begin, timeout)
	for now := begin; int32(now-begin) <= 3*timeout; now += timeout { // each flow begins the time anew
		for range 8 {
			if e := m.Choose(c, all, now, timeout); e != first {
				t.Fatalf("tick %d: %+v, want %+v", now, e, first)
			}
		}
	}
	late := begin + 3*timeout
	if e, ok := m.Look(c, all, late+timeout, timeout); !ok || e != first {
		t.Errorf("at its timeout: %+v, %v, want %+v", e, ok, first)
	}
	if e, ok := m.Look(c, all, late+timeout+1, timeout); ok {
		t.Errorf("after its timeout it has %+v", e)
	}
	without := slices.DeleteFunc(slices.Clone(all), func(e flow.Endpoint) bool { return e == first })
	if e, ok := m.Look(c, without, late, timeout); ok {
		t.Errorf("an endpoint that is gone: %+v", e)
	}
	if e := m.Choose(c, without, late, timeout); e == first {
		t.Errorf("chose %+v, which is gone", e)
	}
}

func TestOnlyWhoIsRememberedIsMoved(t *testing.T) {
	m, all := newMemory(t), choice(64)
	known, unknown, to := client(1, 1), client(1, 2), all[63]
	m.Choose(known, all[:63], 1, timeout)
	for _, c := range []*Client{known, unknown} {
		m.Move(c, &to, 1)
		if e, ok := m.Look(c, all, 1, timeout); ok != (c == known) || ok && e != to {
			t.Errorf("client %v: %+v, %v", c.Addr.Netip(), e, ok)
		}
	}
}

// Each service has its own clients, and each address is one.
func TestClientsAreApart(t *testing.T) {
	m, all := newMemory(t), choice(200)
	const n = 1000
	a, b := choose(m, 1, n, all, 1), choose(m, 2, n, all, 1)
	same := 0
	for i := range a {
		if a[i] == b[i] {
			same++
		}
	}
	if same > 40 { // 5 expected
		t.Errorf("%d of %d clients have one endpoint at two services", same, n)
	}
	if x, y := kept(m, 1, a, all, 1), kept(m, 2, b, all, 1); x != n || y != n {
		t.Errorf("%d and %d clients of %d keep their endpoint", x, y, n)
	}
}

// For the race detector, and that one client's flows agree, whoever carries them.
func TestWorkersAgree(t *testing.T) {
	m, all := newMemory(t), choice(64)
	const clients = 500
	var got [4][clients]flow.Endpoint
	var workers sync.WaitGroup
	for w := range got {
		workers.Go(func() {
			for i := range clients {
				got[w][i] = m.Choose(client(7, i), all, uint32(w), timeout)
			}
		})
	}
	workers.Wait()
	for w := range got {
		if got[w] != got[0] {
			t.Errorf("workers 0 and %d gave clients different endpoints", w)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, bb := range []struct {
		name    string
		clients uint32
	}{{"known", 1000}, {"new, every set full", 1 << 31}} {
		b.Run(bb.name, func(b *testing.B) {
			m, all := newMemory(b), choice(8)
			if bb.clients > 1000 {
				choose(m, 2, 4*sets*ways, all, 1)
			}
			c := client(1, 0)
			for i := uint32(0); b.Loop(); i++ {
				binary.BigEndian.PutUint32(c.Addr[12:], i%bb.clients)
				m.Choose(c, all, 1, timeout)
			}
		})
	}
}
