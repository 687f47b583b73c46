package flow

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/lasting"
	"vswitch/internal/wire"
)

// left is a descriptor with what a table has written, as another process would
// be given it. The table goes on.
func left(t testing.TB, table *Table) int {
	t.Helper()
	return memfdOf(t, table.memory.Bytes, lasting.Sealed)
}

func memfdOf(t testing.TB, content []byte, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("flow-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(content); {
		n, err := unix.Pwrite(fd, content[at:], int64(at))
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return fd
}

func mustOpen(t testing.TB, fd int, cfg Config, tick uint32) (*Table, Report) {
	t.Helper()
	table, report, err := Open(fd, cfg, tick)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table, report
}

// checkWhole holds a table against what Open promises: every connection is found
// by both its tuples, owners have as many as are counted, and nothing else is there.
func checkWhole(t testing.TB, table *Table) {
	t.Helper()
	owners := map[uint64]int32{}
	entries, n := 0, 0
	for info := range table.All() {
		n++
		owners[info.Owner]++
		for dir, k := range []Key{info.Orig, info.Reply} {
			var hit Hit
			if table.find(&k, table.Hash(&k), &hit) == nil || hit.Dir != Direction(dir) {
				t.Errorf("%+v of %+v is not found", k, info.Spec)
			}
		}
	}
	for c := range table.chunks {
		for i := range table.chunks[c].slots {
			if table.chunks[c].slots[i].Load() != 0 {
				entries++
			}
		}
	}
	if n != table.Len() || entries != 2*n {
		t.Errorf("%d connections, Len %d, %d entries", n, table.Len(), entries)
	}
	for owner, count := range owners {
		if table.admission.owners[owner] != count {
			t.Errorf("owner %d has %d connections and %d counted", owner, count, table.admission.owners[owner])
		}
	}
	free := 0
	for rec := table.admission.free; rec != 0; rec = table.records[rec-1].check.Load() {
		if free++; free > table.Cap() {
			t.Fatal("the free list has no end")
		}
	}
	if got := n + free + table.Cap() - int(table.admission.fresh); got != table.Cap() {
		t.Errorf("%d connections, %d free and %d fresh records of %d", n, free, table.Cap()-int(table.admission.fresh), table.Cap())
	}
}

func TestOpenKeepsWhatAnotherProcessLeft(t *testing.T) {
	const n = 5000
	old := newTable(t, Config{Connections: n, PerOwner: n})
	for i := range uint32(n - 10) {
		s := numbered(i)
		s.Owner, s.Policy, s.Flags = uint64(i%7), i, ReplyToGateway
		mustInsert(t, old, s, wire.SYN, 1000)
		hit, _ := lookup(old, s.Reply, 1000+i%50)
		old.Track(&hit, wire.SYN|wire.ACK, 1, 60, 1000+i%50)
	}
	old.DeleteFunc(func(i *Info) bool { return i.Endpoint%5 == 0 })
	want := map[Key]Info{}
	old.Expire(1100, 0)
	for info := range old.All() {
		want[info.Orig] = info
	}
	table, report := mustOpen(t, left(t, old), Config{PerOwner: n}, 1100)
	if report != (Report{Kept: len(want)}) || table.Cap() != n {
		t.Errorf("%+v and room for %d, want %d and %d", report, table.Cap(), len(want), n)
	}
	for got := range table.All() {
		if got != want[got.Orig] {
			t.Errorf("got  %+v\nwant %+v", got, want[got.Orig])
		}
	}
	checkWhole(t, table)
	k := numbered(1).Orig
	if old.Hash(&k) != table.Hash(&k) {
		t.Error("the hash key has changed: flows would leave by other ports of the tunnel")
	}
	for i := range uint32(n) {
		if got := table.Insert(numbered(n+i), wire.SYN, 1100); i >= uint32(n-len(want)) {
			if got != TableFull {
				t.Fatalf("connection %d: %v", i, got)
			}
		} else if got != Inserted {
			t.Fatalf("connection %d: %v", i, got)
		}
	}
}

func TestOpenOfAnEmptyTable(t *testing.T) {
	table, report := mustOpen(t, left(t, newTable(t, Config{Connections: 100})), Config{}, 1)
	if report != (Report{}) || table.Cap() != 100 {
		t.Errorf("%+v and room for %d", report, table.Cap())
	}
	checkEmpty(t, table)
}

// Ticks are counted from the machine's start, so what another process wrote is
// as old as it is; if the clock was set back, it is new.
func TestOpenKeepsAges(t *testing.T) {
	old := newTable(t, Config{Connections: 16})
	mustInsert(t, old, numbered(0), wire.SYN, 1000)
	for _, tc := range []struct{ now, age, idle, removed uint32 }{
		{now: 1300, age: 300, idle: 300},
		{now: 1000 + 2*600 + 1, age: 2*600 + 1, idle: 2*600 + 1, removed: 1}, // TCPSynSent
		{now: 900},
	} {
		table, _ := mustOpen(t, left(t, old), Config{}, tc.now)
		for info := range table.All() {
			if info.AgeTicks != tc.age || info.IdleTicks != tc.idle {
				t.Errorf("at %d: age %d, idle %d", tc.now, info.AgeTicks, info.IdleTicks)
			}
		}
		if got := table.Expire(tc.now, 16); got != int(tc.removed) {
			t.Errorf("at %d: %d expired, want %d", tc.now, got, tc.removed)
		}
	}
}

func TestOpenDiscardsWhatIsNoConnection(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(r []record)
		want   Report
	}{
		{"a record half written", func(r []record) { r[0].gen.Add(1) }, Report{Kept: 1}},
		{"another source address", func(r []record) { r[0].keys[Forward].src[1].Add(1) }, Report{Kept: 1, Discarded: 1}},
		{"another port of the answers", func(r []record) { r[0].keys[Reply].ports.Add(1 << 32) }, Report{Kept: 1, Discarded: 1}},
		{"another endpoint", func(r []record) { r[0].endpoint.Add(1) }, Report{Kept: 1, Discarded: 1}},
		{"another owner", func(r []record) { r[0].owner.Add(1) }, Report{Kept: 1, Discarded: 1}},
		{"another policy", func(r []record) { r[0].policy.Add(1) }, Report{Kept: 1, Discarded: 1}},
		{"other flags", func(r []record) { r[0].flags.Store(uint32(ReplyToGateway)) }, Report{Kept: 1, Discarded: 1}},
		{"another life of the record", func(r []record) { r[0].gen.Add(2) }, Report{Kept: 1, Discarded: 1}},
		{"no state", func(r []record) { r[0].state.Store(stateWord(states, r[0].gen.Load())) }, Report{Kept: 1, Discarded: 1}},
		{"another protocol's state", func(r []record) { r[0].state.Store(stateWord(Echo, r[0].gen.Load())) }, Report{Kept: 1, Discarded: 1}},
		{"a state of another life", func(r []record) { r[0].state.Add(1 << 8) }, Report{Kept: 1, Discarded: 1}},
		{"the same connection twice", func(r []record) {
			copy(bytesOf(&r[2]), bytesOf(&r[0]))
		}, Report{Kept: 2, Discarded: 1}},
		{"a dead connection come to life", func(r []record) { r[3].gen.Add(1) }, Report{Kept: 2, Discarded: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old := newTable(t, Config{Connections: 16})
			for i := range uint32(5) {
				mustInsert(t, old, numbered(i), wire.SYN, 1)
			}
			old.DeleteFunc(func(i *Info) bool { return i.Endpoint >= 2 })
			if got := old.records[3].gen.Load(); got != 2 {
				t.Fatalf("record 3 is of generation %d: the test is not what it says", got)
			}
			tc.damage(old.records)
			table, report := mustOpen(t, left(t, old), Config{}, 1)
			if report != tc.want {
				t.Errorf("%+v, want %+v", report, tc.want)
			}
			checkWhole(t, table)
		})
	}
}

func bytesOf(r *record) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(r)), recordBytes) }

// Two connections that differ in one tuple only: the second can't be there.
func TestOpenDiscardsAnotherConnectionsTuple(t *testing.T) {
	vip := key(wire.ProtoUDP, "192.0.2.1:1000", "198.51.100.1:53")
	for _, later := range []*Spec{
		direct(key(wire.ProtoUDP, "192.0.2.1:1000", "192.0.2.2:53")),
		rewrittenTo(vip, "192.0.2.1:1001", "192.0.2.2:53"),
	} {
		old := newTable(t, Config{Connections: 16})
		mustInsert(t, old, rewrittenTo(vip, "192.0.2.1:1000", "192.0.2.2:53"), 0, 1)
		rec, _ := old.admission.reserve(0)
		old.write(rec, later, old.Hash(&later.Orig), old.Hash(&later.Reply), 0, 1)
		table, report := mustOpen(t, left(t, old), Config{}, 1)
		if report != (Report{Kept: 1, Discarded: 1}) {
			t.Errorf("%+v", report)
		}
		checkWhole(t, table)
	}
}

func TestOpenRefusesWhatIsNotATable(t *testing.T) {
	header := func(m []byte) *header { return (*header)(unsafe.Pointer(&m[0])) }
	for _, tc := range []struct {
		name   string
		damage func(mem []byte) []byte
		seals  int
		want   string
	}{
		{"no header", func(m []byte) []byte { return m[:100] }, lasting.Sealed, "100 bytes"},
		{"zeros", func(m []byte) []byte { clear(m); return m }, lasting.Sealed, "not a flow table"},
		{"another version", func(m []byte) []byte { header(m).version++; return m }, lasting.Sealed, "layout version 3, and this is version 2"},
		{"too short", func(m []byte) []byte { return m[:len(m)-128] }, lasting.Sealed, "100 connections in"},
		{"too many records", func(m []byte) []byte { header(m).records = 1<<32 - 1; return m }, lasting.Sealed, "4294967295 connections"},
		{"no records", func(m []byte) []byte { header(m).records = 0; return m }, lasting.Sealed, "0 connections"},
		{"one record fewer", func(m []byte) []byte { header(m).records--; return m }, lasting.Sealed, "99 connections in"},
		{"may shrink", func(m []byte) []byte { return m }, unix.F_SEAL_GROW, "sealed against shrinking"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := bytes.Clone(newTable(t, Config{Connections: 100}).memory.Bytes)
			fd := memfdOf(t, tc.damage(mem), tc.seals)
			table, _, err := Open(fd, Config{}, 1)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want an error with %q", table, err, tc.want)
			}
			var version *VersionError
			if got := errors.As(err, &version); got != (tc.name == "another version") || got && *version != (VersionError{Got: 3, Want: 2}) {
				t.Errorf("a version error: %v, %v", got, version)
			}
			if err := unix.Close(fd); err != nil {
				t.Errorf("Open has taken the descriptor: %v", err)
			}
		})
	}
	if _, _, err := Open(-1, Config{}, 1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}

// The table goes on after Open as if nothing had been.
func TestAnOpenedTableEqualsItsTwin(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 7))
		cfg := Config{Connections: 40, PerOwner: 15}
		table := newTable(t, cfg)
		want := newTwin(table, cfg)
		tick := uint32(1<<32 - 5000)
		for range 40 {
			want.step(t, table, r, &tick, 500)
			opened, report := mustOpen(t, left(t, table), cfg, tick)
			if report != (Report{Kept: len(want.flows)}) {
				t.Fatalf("%+v, want %d connections", report, len(want.flows))
			}
			checkWhole(t, opened)
			compare(t, opened, want)
			table = opened
		}
	}
}

// FuzzOpen turns bits of a table: Open refuses it, or makes a whole table of it.
func FuzzOpen(f *testing.F) {
	const n = 24
	old := newTable(f, Config{Connections: n, PerOwner: n})
	for i := range uint32(n) {
		s := numbered(i)
		s.Owner = uint64(i % 3)
		old.Insert(s, wire.SYN, 1)
	}
	old.DeleteFunc(func(i *Info) bool { return i.Endpoint%4 == 0 })
	good := bytes.Clone(old.memory.Bytes)
	f.Add([]byte{}, uint32(1))
	f.Add([]byte{0, 0, 1}, uint32(1))
	f.Add([]byte{0, 8, 2, 0, 12, 4}, uint32(1))
	f.Add([]byte{0x10, 0, 1, 0x10, 0x80, 1, 0x11, 0, 0xff}, uint32(0xffff_ffff))
	f.Fuzz(func(t *testing.T, damage []byte, tick uint32) {
		tryDamaged(t, good, damage, tick)
	})
}

// tryDamaged opens a table that differs from a good one: damage is a list of places, in 16
// bits, and of bits to turn there.
func tryDamaged(t *testing.T, good, damage []byte, tick uint32) (opened bool) {
	mem := bytes.Clone(good)
	for ; len(damage) >= 3; damage = damage[3:] {
		mem[(int(damage[0])<<8|int(damage[1]))%len(mem)] ^= damage[2]
	}
	fd := memfdOf(t, mem, lasting.Sealed)
	table, report, err := Open(fd, Config{}, tick)
	if err != nil {
		unix.Close(fd)
		return false
	}
	defer table.Close()
	if report.Kept != table.Len() || report.Kept+report.Discarded > table.Cap() {
		t.Errorf("%+v and Len %d", report, table.Len())
	}
	checkWhole(t, table)
	for i := range uint32(table.Cap()) {
		table.Insert(numbered(1000+i), 0, tick)
	}
	checkWhole(t, table)
	table.Expire(tick+1<<30, table.Cap())
	table.DeleteFunc(func(*Info) bool { return true })
	checkEmpty(t, table)
	return true
}

// A bit anywhere, or many, in all that Open reads.
func TestOpenOfDamagedTables(t *testing.T) {
	const n = 24
	old := newTable(t, Config{Connections: n, PerOwner: n})
	for i := range uint32(n - 2) {
		mustInsert(t, old, numbered(i), wire.SYN, 1)
	}
	old.DeleteFunc(func(i *Info) bool { return i.Endpoint%4 == 0 })
	good := bytes.Clone(old.memory.Bytes)
	opened := 0
	try := func(damage []byte) {
		if tryDamaged(t, good, damage, 1) {
			opened++
		}
	}
	turn := func(at int, bits byte) []byte { return []byte{byte(at >> 8), byte(at), bits} }
	headerEnd, recordsEnd := int(unsafe.Sizeof(header{})), countersOffset(n)
	for at := range recordsEnd {
		if at < headerEnd || at >= headerBytes && at < headerBytes+8*recordBytes {
			try(turn(at, 1<<(at%8)))
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		var damage []byte
		for range 1 + r.IntN(200) {
			damage = append(damage, turn(headerBytes+r.IntN(recordsEnd-headerBytes), byte(r.Uint32()))...)
		}
		try(damage)
	}
	if opened < 1500 {
		t.Errorf("%d tables opened: the test does not try what it says", opened)
	}
}
