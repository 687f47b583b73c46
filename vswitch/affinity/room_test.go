//go:build !race

// One goroutine and many clients: the race detector would take its time and find nothing.

package affinity

import "testing"

// Clients without end, as whoever forges addresses has, displace one another: not
// those of other services, before or after.
func TestAFloodOfClientsDisplacesItsOwn(t *testing.T) {
	m, all := newMemory(t), choice(64)
	const few = 1000
	before := choose(m, 1, few, all, 1)
	choose(m, 2, 2*sets*ways, all, 2)
	after := choose(m, 3, few, all, 3)
	// One in a hundred of its sets may hold three clients of a small service, and more of
	// these than of any other only where they hold a third of it.
	if x, y := kept(m, 1, before, all, 3), kept(m, 3, after, all, 3); x < few*99/100 || y < few*99/100 {
		t.Errorf("of %d clients before a flood %d are remembered, of as many after it %d", few, x, y)
	}
}

// How many clients there is room for, if all are of one service: ADR 17 says so.
func TestClientsThatThereIsRoomFor(t *testing.T) {
	for _, tt := range []struct{ clients, lost int }{ // lost: of 10,000
		{sets * ways / 4, 0}, {sets * ways / 2, 15}, {sets * ways * 3 / 4, 300},
	} {
		m, all := newMemory(t), choice(64)
		had := choose(m, 1, tt.clients, all, 1)
		lost := tt.clients - kept(m, 1, had, all, 1)
		t.Logf("%d of %d clients lost", lost, tt.clients)
		if lost*10_000 > tt.lost*tt.clients {
			t.Errorf("%d of %d clients are forgotten, more than %d in 10,000", lost, tt.clients, tt.lost)
		}
	}
}
