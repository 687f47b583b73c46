package flow

import (
	"testing"

	"vswitch/internal/wire"
)

func TestExcerptIsACopyOfItsPart(t *testing.T) {
	table := newTable(t, Config{Connections: 8, PerOwner: 2})
	client, other, server := wire.Addr{15: 10}, wire.Addr{15: 11}, wire.Addr{15: 20}
	key := func(src wire.Addr, port uint16) Key {
		return Key{Src: src, Dst: server, SrcPort: port, DstPort: 80, Proto: wire.ProtoTCP}
	}
	translated := key(client, 1).Reverse()
	translated.SrcPort = 8080
	for _, s := range []Spec{
		{Orig: key(client, 1), Reply: translated, Owner: 1, Endpoint: 9, Flags: ReplyToGateway},
		{Orig: key(other, 1), Reply: key(other, 1).Reverse(), Owner: 2},
	} {
		if r := table.Insert(&s, wire.SYN, 50); r != Inserted {
			t.Fatal(r)
		}
	}
	var hit Hit
	k := key(client, 1)
	table.Lookup(&k, table.Hash(&k), 60, &hit)
	table.Track(&hit, wire.RST, 3, 300, 60)
	want, _, _ := table.Find(&k)

	x, err := table.Excerpt(func(i *Info) bool { return i.Orig.Src == client })
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if got, dir, ok := x.Find(&k); !ok || dir != Forward || got != want {
		t.Errorf("copied %+v, %v; want %+v", got, ok, want)
	}
	reply := translated
	if _, dir, ok := x.Find(&reply); !ok || dir != Reply {
		t.Error("the answers are not found")
	}
	missing := key(other, 1)
	if _, _, ok := x.Find(&missing); ok || x.Len() != 1 {
		t.Errorf("%d connections, want the one that was kept", x.Len())
	}
	// What happens in the copy stays there.
	n := key(client, 2)
	if r := x.Insert(&Spec{Orig: n, Reply: n.Reverse(), Owner: 1}, wire.SYN, 60); r != Inserted {
		t.Errorf("one more in the copy: %v", r)
	}
	if table.Len() != 2 {
		t.Errorf("the table has %d connections, want its own two", table.Len())
	}
	if got, _, _ := table.Find(&k); got != want {
		t.Errorf("the table's connection became %+v, was %+v", got, want)
	}
}

func TestExcerptIsAsFull(t *testing.T) {
	for _, kept := range []bool{true, false} {
		table := newTable(t, Config{Connections: 1})
		k := Key{Src: wire.Addr{15: 10}, Dst: wire.Addr{15: 20}, SrcPort: 1, DstPort: 2, Proto: wire.ProtoUDP}
		if r := table.Insert(&Spec{Orig: k, Reply: k.Reverse()}, 0, 1); r != Inserted {
			t.Fatal(r)
		}
		x, err := table.Excerpt(func(*Info) bool { return kept })
		if err != nil {
			t.Fatal(err)
		}
		k.SrcPort = 3
		if r := x.Insert(&Spec{Orig: k, Reply: k.Reverse()}, 0, 1); r != TableFull {
			t.Errorf("kept %v: one more is %v, want %v", kept, r, TableFull)
		}
		x.Close()
	}
	table := newTable(t, Config{Connections: 8, PerOwner: 1})
	k := Key{Src: wire.Addr{15: 10}, Dst: wire.Addr{15: 20}, SrcPort: 1, DstPort: 2, Proto: wire.ProtoUDP}
	table.Insert(&Spec{Orig: k, Reply: k.Reverse(), Owner: 1}, 0, 1)
	x, err := table.Excerpt(func(*Info) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	k.SrcPort = 3
	if r := x.Insert(&Spec{Orig: k, Reply: k.Reverse(), Owner: 1}, 0, 1); r != OwnerFull {
		t.Errorf("one more of an owner at its cap is %v, want %v", r, OwnerFull)
	}
}
