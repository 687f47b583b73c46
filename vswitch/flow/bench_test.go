package flow

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

// The goals, with 1,000,000 connections: a lookup 60 ns in batches of 32 and 150 ns
// singly, 1,000,000 inserts a second on one core, 192 bytes a connection.

const (
	benchConnections = 1_000_000
	benchBatch       = 32
	benchProbes      = 1 << 20
)

func million(b *testing.B) *Table {
	table := newTable(b, Config{Connections: benchConnections, PerOwner: benchConnections})
	for i := range uint32(benchConnections) {
		if got := table.Insert(numbered(i), wire.SYN, 1); got != Inserted {
			b.Fatalf("connection %d: %v", i, got)
		}
	}
	return table
}

// probes are tuples of random connections in random directions, from
// first to first+benchConnections.
func probes(first uint32) []Key {
	r := rand.New(rand.NewPCG(1, 1))
	out := make([]Key, benchProbes)
	for i := range out {
		s := numbered(first + r.Uint32N(benchConnections))
		if out[i] = s.Orig; r.IntN(2) == 0 {
			out[i] = s.Reply
		}
	}
	return out
}

func perSecond(b *testing.B, unit string) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "M"+unit+"/s")
}

func BenchmarkLookupMillion(b *testing.B) {
	table := million(b)
	hits, misses := probes(0), probes(benchConnections)
	var direct []Key // of those not rewritten
	for len(direct) < benchProbes {
		for _, k := range hits {
			if hit, _ := lookup(table, k, 1); !hit.Rewrite && len(direct) < benchProbes {
				direct = append(direct, k)
			}
		}
	}
	for _, tc := range []struct {
		name string
		keys []Key
		want bool
	}{{"hit", hits, true}, {"hit-direct", direct, true}, {"miss", misses, false}} {
		// In batches, as workers do it.
		b.Run(tc.name+"/batch-of-32", func(b *testing.B) {
			var hashes [benchBatch]uint64
			var hit Hit
			for i := 0; b.Loop(); i++ {
				k := i & (benchProbes - 1)
				if i%benchBatch == 0 {
					for n := range hashes {
						hashes[n] = table.Hash(&tc.keys[k+n])
					}
					table.Warm(hashes[:])
				}
				if table.Lookup(&tc.keys[k], hashes[i%benchBatch], 1, &hit) != tc.want {
					b.Fatal("wrong")
				}
			}
			perSecond(b, "lookups")
		})
		// Singly: each lookup's key depends on the one before.
		b.Run(tc.name+"/single", func(b *testing.B) {
			var hit Hit
			for i := 0; b.Loop(); i++ {
				k := (i + int(hit.Ref>>63)) & (benchProbes - 1)
				if table.Lookup(&tc.keys[k], table.Hash(&tc.keys[k]), 1, &hit) != tc.want {
					b.Fatal("wrong")
				}
			}
			perSecond(b, "lookups")
		})
	}
}

func BenchmarkLookupFew(b *testing.B) {
	table := newTable(b, Config{})
	for i := range uint32(64) {
		table.Insert(numbered(i), wire.SYN, 1)
	}
	var keys [64]Key
	for i := range keys {
		keys[i] = numbered(uint32(i)).Reply
	}
	var hit Hit
	b.Run("lookup", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			k := &keys[i&63]
			table.Lookup(k, table.Hash(k), 1, &hit)
		}
	})
	b.Run("lookup-and-track", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			k := &keys[i&63]
			table.Lookup(k, table.Hash(k), 1, &hit)
			table.Track(&hit, wire.ACK, 1, 1500, 1)
		}
	})
	b.Run("hash", func(b *testing.B) {
		sum := uint64(0)
		for i := 0; b.Loop(); i++ {
			sum += table.Hash(&keys[i&63])
		}
		_ = sum
	})
}

// Insert into a table that holds almost a million connections, each in place of
// one that is deleted outside the clock in bulk.
func BenchmarkInsert(b *testing.B) {
	table := newTable(b, Config{Connections: benchConnections, PerOwner: benchConnections})
	specs := make([]*Spec, benchConnections)
	for i := range specs {
		specs[i] = numbered(uint32(i))
		specs[i].Owner = uint64(i % 110)
	}
	for i := 0; b.Loop(); i++ {
		if i%benchConnections == 0 && i > 0 {
			b.StopTimer()
			table.DeleteFunc(func(*Info) bool { return true })
			b.StartTimer()
		}
		if got := table.Insert(specs[i%benchConnections], wire.SYN, 1); got != Inserted {
			b.Fatal(got)
		}
	}
	perSecond(b, "inserts")
}

// One sweep of a million live connections, to divide by the ticks it is spread over.
func BenchmarkExpireMillion(b *testing.B) {
	table := million(b)
	for b.Loop() {
		table.Expire(2, benchConnections)
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/benchConnections/float64(time.Nanosecond), "ns/record")
}

// Open, with all that it makes anew, until the first lookup can be.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{DefaultConnections, benchConnections} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			table := newTable(b, Config{Connections: n, PerOwner: n})
			for i := range uint32(n) {
				s := numbered(i)
				s.Owner = uint64(i%110) + 1
				table.Insert(s, wire.SYN, 1)
			}
			for b.Loop() {
				fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 3)
				if err != nil {
					b.Fatal(err)
				}
				opened, report, err := Open(fd, Config{PerOwner: n}, 1)
				if err != nil || report.Kept != n {
					b.Fatal(report, err)
				}
				b.StopTimer()
				opened.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(n), "ns/connection")
		})
	}
}
