package flow

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"vswitch/internal/wire"
)

// Readers look up while writers insert, delete and expire in a table so small that
// records and slots change hands all the time. Whatever a reader is given for a
// tuple must be that tuple's; connections that stay must always be found.
func TestReadersNeverSeeATornOrMissingConnection(t *testing.T) {
	const (
		flows   = 512 // every fourth stays
		rounds  = 20000
		readers = 2
		writers = 2
	)
	table := newTable(t, Config{Connections: flows * 3 / 4, PerOwner: flows})
	stays := func(i uint32) bool { return i%4 == 0 }
	for i := uint32(0); i < flows; i += 4 {
		mustInsert(t, table, numbered(i), wire.SYN, 1)
	}
	var done atomic.Bool
	var reading, writing sync.WaitGroup
	for n := range uint64(readers) {
		reading.Go(func() {
			r := rand.New(rand.NewPCG(n, 1))
			var hit Hit
			for tick := uint32(1); !done.Load(); tick++ {
				i := r.Uint32N(flows)
				s := numbered(i)
				k, to, dir := s.Orig, s.Reply.Reverse(), Forward
				if r.IntN(2) == 0 {
					k, to, dir = s.Reply, s.Orig.Reverse(), Reply
				}
				switch ok := table.Lookup(&k, table.Hash(&k), 1, &hit); {
				case !ok && stays(i):
					t.Errorf("connection %d is missing", i)
					return
				case ok && (hit.To != to || hit.Dir != dir || hit.Rewrite != (i%2 == 1)):
					t.Errorf("connection %d, %v: %+v", i, dir, hit)
					return
				case ok:
					table.Track(&hit, uint8(tick), 1, 60, 1)
				}
			}
		})
	}
	for n := range uint64(writers) {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(n, 2))
			for range rounds {
				i := r.Uint32N(flows)
				if stays(i) {
					continue
				}
				table.Insert(numbered(i), wire.SYN, 1)
				if r.IntN(100) == 0 {
					table.DeleteFunc(func(info *Info) bool {
						if want := numbered(uint32(info.Endpoint)); info.Orig != want.Orig || info.Reply != want.Reply {
							t.Errorf("All has %+v", info)
						}
						return !stays(uint32(info.Endpoint)) && r.IntN(2) == 0
					})
				}
			}
		})
	}
	writing.Wait()
	done.Store(true)
	reading.Wait()
	table.DeleteFunc(func(*Info) bool { return true })
	checkEmpty(t, table)
}

// The same with one record for all, so that every read meets a change of it.
func TestReadersOfOneRecordNeverMixItsConnections(t *testing.T) {
	table := newTable(t, Config{Connections: 1})
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		var hit Hit
		for i := uint32(0); !done.Load(); i++ {
			s := numbered(i % 2)
			if table.Lookup(&s.Orig, table.Hash(&s.Orig), 1, &hit) &&
				(hit.To != s.Reply.Reverse() || hit.Rewrite != (i%2 == 1)) {
				t.Errorf("connection %d: %+v", i%2, hit)
				return
			}
			for info := range table.All() {
				if want := numbered(uint32(info.Endpoint)); info.Orig != want.Orig || info.Reply != want.Reply {
					t.Errorf("All has %+v", info)
					return
				}
			}
		}
	})
	for i := range uint32(200000) {
		mustInsert(t, table, numbered(i%2), wire.SYN, 1)
		hit, _ := lookup(table, numbered(i%2).Orig, 1)
		if !table.remove(hit.Ref) {
			t.Fatal("not removed")
		}
	}
	done.Store(true)
	wg.Wait()
}

// Many workers see the first packets of the same connections at once, both
// ends' among them: one of them inserts each, and nobody waits for ever.
func TestOneOfManyInsertsWins(t *testing.T) {
	const flows, workers = 2000, 4
	table := newTable(t, Config{Connections: flows, PerOwner: flows})
	var inserted atomic.Int32
	var wg sync.WaitGroup
	for n := range workers {
		wg.Go(func() {
			for i := range uint32(flows) {
				s := numbered(i &^ 1) // direct ones, so that the reverse is the same connection
				if n%2 == 1 {
					s.Orig, s.Reply = s.Reply, s.Orig
				}
				switch got := table.Insert(s, wire.SYN, 1); got {
				case Inserted:
					inserted.Add(1)
				case Exists:
				default:
					t.Errorf("Insert = %v", got)
				}
			}
		})
	}
	wg.Wait()
	if inserted.Load() != flows/2 || table.Len() != flows/2 {
		t.Errorf("%d inserts won and Len is %d, want %d", inserted.Load(), table.Len(), flows/2)
	}
}

// Two connections with the same answers race: one must lose, whichever it is.
func TestOfTwoConnectionsWithTheSameAnswersOneIsInserted(t *testing.T) {
	table := newTable(t, Config{Connections: 4000, PerOwner: 4000})
	for i := range uint16(1000) {
		straight := direct(key(wire.ProtoUDP, "192.0.2.1:1", "192.0.2.2:53"))
		viaVIP := rewrittenTo(key(wire.ProtoUDP, "192.0.2.1:1", "198.51.100.1:53"), "192.0.2.1:1", "192.0.2.2:53")
		results := [2]Result{}
		var wg sync.WaitGroup
		for n, s := range []*Spec{straight, viaVIP} {
			s.Orig.SrcPort, s.Reply.DstPort = i, i
			wg.Go(func() { results[n] = table.Insert(s, 0, 1) })
		}
		wg.Wait()
		if results != [2]Result{Inserted, ReplyTaken} && results != [2]Result{ReplyTaken, Inserted} {
			t.Fatalf("got %v", results)
		}
	}
}

func TestConcurrentTracksLoseNoCount(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	s := numbered(0)
	mustInsert(t, table, s, wire.SYN, 1)
	const each, workers = 5000, 4
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			hit, _ := lookup(table, s.Orig, 1)
			for range each {
				table.Track(&hit, wire.ACK, 1, 10, 1)
			}
		})
	}
	wg.Wait()
	for info := range table.All() {
		if info.Frames[Forward] != each*workers || info.Bytes[Forward] != 10*each*workers {
			t.Errorf("got %v frames, %v bytes", info.Frames, info.Bytes)
		}
	}
}
