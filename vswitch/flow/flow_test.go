package flow

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"vswitch/internal/wire"
)

func newTable(t testing.TB, cfg Config) *Table {
	t.Helper()
	table, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

func key(proto uint8, src, dst string) Key {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return Key{
		Src: wire.AddrFrom(s.Addr()), Dst: wire.AddrFrom(d.Addr()),
		SrcPort: s.Port(), DstPort: d.Port(), Proto: proto,
	}
}

func direct(k Key) *Spec { return &Spec{Orig: k, Reply: k.Reverse()} }

// rewrittenTo is a connection to a VIP that was given the endpoint dst, and whose
// source, as the endpoint sees it, is src.
func rewrittenTo(orig Key, src, dst string) *Spec {
	return &Spec{Orig: orig, Reply: key(orig.Proto, dst, src)}
}

func lookup(t *Table, k Key, tick uint32) (hit Hit, ok bool) {
	ok = t.Lookup(&k, t.Hash(&k), tick, &hit)
	return hit, ok
}

func mustInsert(t *testing.T, table *Table, s *Spec, flags uint8, tick uint32) {
	t.Helper()
	if got := table.Insert(s, flags, tick); got != Inserted {
		t.Fatalf("Insert = %v", got)
	}
}

func TestBothDirectionsFindTheConnectionAndTheirRewrite(t *testing.T) {
	for _, tc := range []struct {
		name             string
		client, vip, pod string // client to vip is sent to pod,
		source           string // which sees source
		wantRewrite      bool
	}{
		{name: "direct, IPv4", client: "192.0.2.1:1000", vip: "192.0.2.2:80", pod: "192.0.2.2:80", source: "192.0.2.1:1000"},
		{name: "direct, IPv6", client: "[2001:db8::1]:1000", vip: "[2001:db8::2]:80", pod: "[2001:db8::2]:80", source: "[2001:db8::1]:1000"},
		{name: "service, IPv4", client: "192.0.2.1:1000", vip: "198.51.100.1:80", pod: "192.0.2.2:8080", source: "192.0.2.1:1000", wantRewrite: true},
		{name: "service, IPv6", client: "[2001:db8::1]:1000", vip: "[2001:db8:9::1]:80", pod: "[2001:db8::2]:8080", source: "[2001:db8::1]:1000", wantRewrite: true},
		{name: "hairpin with another source", client: "192.0.2.1:1000", vip: "198.51.100.1:80", pod: "192.0.2.1:8080", source: "192.0.2.254:3000", wantRewrite: true},
		{name: "only the source port differs", client: "192.0.2.1:1000", vip: "192.0.2.2:80", pod: "192.0.2.2:80", source: "192.0.2.1:1001", wantRewrite: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := newTable(t, Config{Connections: 16})
			orig := key(wire.ProtoTCP, tc.client, tc.vip)
			s := rewrittenTo(orig, tc.source, tc.pod)
			s.Endpoint, s.Flags = 77, ReplyToGateway
			mustInsert(t, table, s, wire.SYN, 1)

			hit, ok := lookup(table, orig, 1)
			want := Hit{Ref: hit.Ref, Dir: Forward, Flags: ReplyToGateway, State: SynSent, Rewrite: tc.wantRewrite,
				To: key(wire.ProtoTCP, tc.source, tc.pod)}
			if !ok || hit != want {
				t.Errorf("forward: %v %+v,\nwant %+v", ok, hit, want)
			}
			hit, ok = lookup(table, key(wire.ProtoTCP, tc.pod, tc.source), 1)
			want.Dir, want.To = Reply, key(wire.ProtoTCP, tc.vip, tc.client)
			if !ok || hit != want {
				t.Errorf("reply: %v %+v,\nwant %+v", ok, hit, want)
			}
		})
	}
}

func TestATupleThatDiffersAnywhereMisses(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	k := key(wire.ProtoTCP, "192.0.2.1:1000", "192.0.2.2:80")
	mustInsert(t, table, direct(k), wire.SYN, 1)
	for i := range k.Src {
		other := k
		other.Src[i] ^= 1
		if _, ok := lookup(table, other, 1); ok {
			t.Errorf("hit with source byte %d changed", i)
		}
		other = k
		other.Dst[i] ^= 1
		if _, ok := lookup(table, other, 1); ok {
			t.Errorf("hit with destination byte %d changed", i)
		}
	}
	for name, change := range map[string]func(*Key){
		"source port":      func(k *Key) { k.SrcPort++ },
		"destination port": func(k *Key) { k.DstPort++ },
		"protocol":         func(k *Key) { k.Proto = wire.ProtoUDP },
		"ports swapped":    func(k *Key) { k.SrcPort, k.DstPort = k.DstPort, k.SrcPort },
	} {
		other := k
		change(&other)
		if _, ok := lookup(table, other, 1); ok {
			t.Errorf("hit with %s changed", name)
		}
	}
}

// A client speaks from one port to a service and directly to the endpoint that
// the service gave it: whichever comes later must get another source port.
func TestConnectionsWhoseAnswersLookAlike(t *testing.T) {
	vip := key(wire.ProtoUDP, "192.0.2.1:5000", "198.51.100.1:53")
	straight := key(wire.ProtoUDP, "192.0.2.1:5000", "192.0.2.2:53")
	viaVIP := func(port string) *Spec { return rewrittenTo(vip, "192.0.2.1:"+port, "192.0.2.2:53") }
	viaNone := func(port string) *Spec { return rewrittenTo(straight, "192.0.2.1:"+port, "192.0.2.2:53") }
	for _, tc := range []struct {
		name         string
		first, later func(port string) *Spec
	}{
		{"service first, then directly", viaVIP, viaNone},
		{"directly first, then service", viaNone, viaVIP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := newTable(t, Config{Connections: 16})
			mustInsert(t, table, tc.first("5000"), 0, 1)
			if got := table.Insert(tc.later("5000"), 0, 1); got != ReplyTaken {
				t.Fatalf("later flow with the same answers: %v, want %v", got, ReplyTaken)
			}
			if _, ok := lookup(table, tc.later("5000").Orig, 1); ok {
				t.Fatal("the refused flow is in the table")
			}
			mustInsert(t, table, tc.later("5001"), 0, 1)
			for _, s := range []*Spec{tc.first("5000"), tc.later("5001")} {
				hit, ok := lookup(table, s.Reply, 1)
				if !ok || hit.Dir != Reply || hit.To != s.Orig.Reverse() {
					t.Errorf("answer %+v: %v %+v, want it to go to %+v", s.Reply, ok, hit, s.Orig.Reverse())
				}
			}
		})
	}
}

func TestInsertRefusals(t *testing.T) {
	k := key(wire.ProtoTCP, "192.0.2.1:1000", "192.0.2.2:80")
	for _, tc := range []struct {
		name string
		have *Spec
		add  *Spec
		want Result
	}{
		{"the same connection", direct(k), direct(k), Exists},
		{"the same first packet, sent elsewhere", direct(k), rewrittenTo(k, "192.0.2.1:1000", "192.0.2.3:80"), Exists},
		{"its answer as a first packet", direct(k), direct(k.Reverse()), Exists},
		{"answers that are another's first packets", direct(k),
			rewrittenTo(key(wire.ProtoTCP, "192.0.2.2:9", "198.51.100.1:9"), "192.0.2.2:80", "192.0.2.1:1000"), ReplyTaken},
		{"answers that look like its own packets", direct(k),
			direct(key(wire.ProtoTCP, "192.0.2.9:7", "192.0.2.9:7")), ReplyTaken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := newTable(t, Config{Connections: 16})
			mustInsert(t, table, tc.have, wire.SYN, 1)
			if got := table.Insert(tc.add, wire.SYN, 1); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			if got := table.Len(); got != 1 {
				t.Errorf("Len = %d, want 1", got)
			}
		})
	}
}

func TestCaps(t *testing.T) {
	table := newTable(t, Config{Connections: 10, PerOwner: 4})
	port := uint16(0)
	add := func(owner uint64) Result {
		port++
		s := direct(key(wire.ProtoUDP, "192.0.2.1:1", "192.0.2.2:53"))
		s.Orig.SrcPort, s.Reply.DstPort, s.Owner = port, port, owner
		return table.Insert(s, 0, 1)
	}
	expect := func(owner uint64, want ...Result) {
		t.Helper()
		for _, w := range want {
			if got := add(owner); got != w {
				t.Fatalf("connection %d, of owner %d: %v, want %v", port, owner, got, w)
			}
		}
	}
	expect(1, Inserted, Inserted, Inserted, Inserted, OwnerFull)
	expect(2, Inserted, Inserted)
	expect(0, Inserted, Inserted, Inserted, Inserted, TableFull) // nobody's: only the table's cap
	expect(2, TableFull)
	if n := table.DeleteFunc(func(i *Info) bool { return i.Owner == 1 }); n != 4 {
		t.Fatalf("deleted %d of owner 1, want 4", n)
	}
	expect(1, Inserted, Inserted, Inserted, Inserted, OwnerFull)
	if got := table.Len(); got != table.Cap() {
		t.Errorf("Len = %d, want %d", got, table.Cap())
	}
}

// Every connection the table promises fits, however its tuples fall into shards.
func TestATableHoldsAllItsConnections(t *testing.T) {
	for _, n := range []int{1, 2, 7, 100, 1023, 1024, 5000, 40000} {
		table := newTable(t, Config{Connections: n, PerOwner: n})
		for i := range n {
			if got := table.Insert(numbered(uint32(i)), 0, 1); got != Inserted {
				t.Fatalf("connection %d of %d: %v", i, n, got)
			}
		}
		if got := table.Insert(numbered(uint32(n)), 0, 1); got != TableFull {
			t.Errorf("connection %d of %d: %v", n, n, got)
		}
		for i := range n {
			if _, ok := lookup(table, numbered(uint32(i)).Reply, 1); !ok {
				t.Fatalf("connection %d of %d is not found", i, n)
			}
		}
		if removed := table.DeleteFunc(func(*Info) bool { return true }); removed != n {
			t.Errorf("deleted %d, want %d", removed, n)
		}
		checkEmpty(t, table)
	}
}

// numbered is the i-th of many connections, to a service if i is odd.
func numbered(i uint32) *Spec {
	k := Key{Src: v4(10<<24 + i>>8), Dst: v4(198<<24 + 51<<16 + 100<<8), SrcPort: uint16(i & 0xff), DstPort: 80, Proto: wire.ProtoTCP}
	s := &Spec{Orig: k, Reply: k.Reverse(), Endpoint: uint64(i)}
	if i%2 == 1 {
		s.Reply.Src, s.Reply.SrcPort = v4(172<<24+16<<16+i%7), 8080
	}
	return s
}

func v4(a uint32) wire.Addr {
	return wire.AddrFrom4([]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

// checkEmpty holds an empty table against what it must have given back.
func checkEmpty(t *testing.T, table *Table) {
	t.Helper()
	for c := range table.chunks {
		ch := &table.chunks[c]
		for i := range ch.slots {
			if w := ch.slots[i].Load(); w != 0 {
				t.Errorf("chunk %d slot %d holds %#x", c, i, w)
			}
		}
		if n := ch.passed.Load(); n != 0 {
			t.Errorf("chunk %d counts %d entries behind it", c, int64(n))
		}
	}
	if table.Len() != 0 || len(table.admission.owners) != 0 {
		t.Errorf("Len = %d, owners %v", table.Len(), table.admission.owners)
	}
}

func TestTrackCountsEachDirection(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	k := key(wire.ProtoUDP, "192.0.2.1:1000", "192.0.2.2:53")
	s := direct(k)
	s.Owner, s.Endpoint, s.Policy, s.Flags = 3, 4, 5, ReplyToGateway
	mustInsert(t, table, s, 0, 100)
	forward, _ := lookup(table, k, 107)
	table.Track(&forward, 0, 1, 60, 107)
	table.Track(&forward, 0, 44, 64000, 107)
	reply, _ := lookup(table, k.Reverse(), 110)
	table.Track(&reply, 0, 1, 1500, 110)
	table.Expire(115, 0)

	want := Info{Spec: *s, State: UDPReplied, Frames: [2]uint64{45, 1}, Bytes: [2]uint64{64060, 1500}, AgeTicks: 15, IdleTicks: 5}
	n := 0
	for got := range table.All() {
		if n++; got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestAHitOfAnEndedConnectionChangesNothing(t *testing.T) {
	table := newTable(t, Config{Connections: 1})
	a, b := numbered(0), numbered(2)
	mustInsert(t, table, a, wire.SYN, 1)
	old, _ := lookup(table, a.Orig, 1)
	table.DeleteFunc(func(*Info) bool { return true })
	mustInsert(t, table, b, wire.SYN, 1) // takes the same record
	table.Track(&old, wire.RST, 1, 60, 1)
	table.records[0].advance(old.Ref>>32, Forward, wire.RST, 1) // as a Track that was interrupted half way
	for info := range table.All() {
		if info.State != SynSent || info.Frames != [2]uint64{} {
			t.Errorf("after Track of a hit on another connection: %+v", info)
		}
	}
	if table.remove(old.Ref) {
		t.Error("remove of an ended connection took the next one")
	}
}

func TestShardsAreLockedInOneOrder(t *testing.T) {
	table := newTable(t, Config{Connections: 4096})
	low, high := uint64(1)<<(64-table.shardBits), uint64(3)<<(64-table.shardBits)
	for _, tc := range []struct {
		name   string
		a, b   uint64
		lo, hi *sync.Mutex
	}{
		{"ascending", low, high, &table.shards[1].mu, &table.shards[3].mu},
		{"descending", high, low, &table.shards[1].mu, &table.shards[3].mu},
		{"one shard", low, low + 1, &table.shards[1].mu, nil},
	} {
		lo, hi := table.lockPair(tc.a, tc.b)
		if lo != tc.lo || hi != tc.hi || lo.TryLock() || hi != nil && hi.TryLock() {
			t.Errorf("%s: locks others, or not all", tc.name)
		}
		unlockPair(lo, hi)
		for i := range table.shards {
			if !table.shards[i].mu.TryLock() {
				t.Fatalf("%s: shard %d stays locked", tc.name, i)
			}
			table.shards[i].mu.Unlock()
		}
	}
}

func TestASynReplacesAConnectionThatHasEnded(t *testing.T) {
	k := key(wire.ProtoTCP, "192.0.2.1:1000", "198.51.100.1:80")
	first := rewrittenTo(k, "192.0.2.1:1000", "192.0.2.2:8080")
	second := rewrittenTo(k, "192.0.2.1:1000", "192.0.2.3:8080")
	for _, tc := range []struct {
		name  string
		end   func(*Table, *Hit)
		flags uint8
		want  Result
	}{
		{"SYN after a reset", func(t *Table, h *Hit) { t.Track(h, wire.RST, 1, 60, 1) }, wire.SYN, Inserted},
		{"SYN in TIME-WAIT", func(t *Table, h *Hit) {
			for _, p := range []struct {
				dir   Direction
				flags uint8
			}{{Reply, wire.SYN | wire.ACK}, {Forward, wire.ACK}, {Forward, wire.FIN}, {Reply, wire.FIN}} {
				h.Dir = p.dir
				t.Track(h, p.flags, 1, 60, 1)
			}
		}, wire.SYN, Inserted},
		{"SYN with ECN bits after a reset", func(t *Table, h *Hit) { t.Track(h, wire.RST, 1, 60, 1) }, wire.SYN | wire.ECE | wire.CWR, Inserted},
		{"ACK after a reset", func(t *Table, h *Hit) { t.Track(h, wire.RST, 1, 60, 1) }, wire.ACK, Exists},
		{"SYN ACK after a reset", func(t *Table, h *Hit) { t.Track(h, wire.RST, 1, 60, 1) }, wire.SYN | wire.ACK, Exists},
		{"SYN into a handshake", func(*Table, *Hit) {}, wire.SYN, Exists},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := newTable(t, Config{Connections: 16})
			mustInsert(t, table, first, wire.SYN, 1)
			hit, _ := lookup(table, k, 1)
			tc.end(table, &hit)
			hit, _ = lookup(table, k, 1)
			if got := hit.Reopens(tc.flags); got != (tc.want == Inserted) {
				t.Errorf("Reopens = %v", got)
			}
			if got := table.Insert(second, tc.flags, 2); got != tc.want {
				t.Fatalf("got %v, want %v", got, tc.want)
			}
			_, oldReply := lookup(table, first.Reply, 2)
			_, newReply := lookup(table, second.Reply, 2)
			if replaced := tc.want == Inserted; oldReply == replaced || newReply != replaced {
				t.Errorf("answers of the old endpoint found: %v, of the new: %v", oldReply, newReply)
			}
			if table.Len() != 1 {
				t.Errorf("Len = %d, want 1", table.Len())
			}
		})
	}
}

func TestAnIdleConnectionMakesRoomBeforeTheSweep(t *testing.T) {
	table := newTable(t, Config{Connections: 16, Timeouts: Timeouts{UDPSingle: time.Second}})
	k := key(wire.ProtoUDP, "192.0.2.1:1000", "198.51.100.1:53")
	direct53 := direct(key(wire.ProtoUDP, "192.0.2.1:1000", "192.0.2.2:53"))
	mustInsert(t, table, rewrittenTo(k, "192.0.2.1:1000", "192.0.2.2:53"), 0, 1)
	if got := table.Insert(direct53, 0, 11); got != ReplyTaken {
		t.Errorf("at the timeout: %v, want %v", got, ReplyTaken)
	}
	mustInsert(t, table, direct53, 0, 12)
	if table.Len() != 1 {
		t.Errorf("Len = %d, want 1", table.Len())
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for _, cfg := range []Config{
		{Connections: -1}, {Connections: MaxConnections + 1}, {PerOwner: -1},
		{Timeouts: Timeouts{Echo: -time.Second}}, {Timeouts: Timeouts{Echo: time.Millisecond}},
		{Timeouts: Timeouts{Other: 1000 * 24 * time.Hour}},
	} {
		if table, err := New(cfg); err == nil {
			table.Close()
			t.Errorf("New(%+v) took it", cfg)
		}
	}
}

func TestLookupAndTrackDoNotAllocate(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	s := numbered(1)
	mustInsert(t, table, s, wire.SYN, 1)
	miss := numbered(2).Orig
	var hit Hit
	tick := uint32(1)
	if n := testing.AllocsPerRun(1000, func() {
		tick++
		table.Lookup(&s.Orig, table.Hash(&s.Orig), tick, &hit)
		table.Track(&hit, wire.ACK, 1, 60, tick)
		table.Lookup(&s.Reply, table.Hash(&s.Reply), tick, &hit)
		table.Track(&hit, wire.SYN|wire.ACK, 1, 60, tick)
		table.Lookup(&miss, table.Hash(&miss), tick, &hit)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestInsertAndExpireDoNotAllocate(t *testing.T) {
	table := newTable(t, Config{Connections: 16})
	s := numbered(1)
	s.Owner = 9
	tick := uint32(1)
	if n := testing.AllocsPerRun(1000, func() {
		table.Insert(s, wire.SYN, tick)
		tick += 100000
		if table.Expire(tick, 16) != 1 {
			t.Fatal("not expired")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
