package node

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
)

func TestOrphansAreProvokedUntilTheyAreOver(t *testing.T) {
	addr := func(s string) wire.Addr { return wire.AddrFrom(netip.MustParseAddr(s)) }
	routes := fib.New()
	for prefix, kind := range map[string]fib.Kind{"0.0.0.0/0": fib.Egress, "10.244.0.0/24": fib.Port, "10.96.0.0/16": fib.VIP, "192.0.2.1/32": fib.Node} {
		routes.SetPrefix(netip.MustParsePrefix(prefix), fib.NextHop{Kind: kind})
	}
	flows, err := flow.New(flow.Config{Connections: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer flows.Close()
	pod, other, vip, outside, host := addr("10.244.0.2"), addr("10.244.0.3"), addr("10.96.0.1"), addr("198.51.100.7"), addr("192.0.2.1")
	port := uint16(1000)
	// insert begins a connection and lets it speak both ways.
	insert := func(src, dst wire.Addr, flags flow.Flags, more ...func(*flow.Spec)) flow.Spec {
		port++
		k := flow.Key{Src: src, Dst: dst, SrcPort: port, DstPort: 80, Proto: wire.ProtoTCP}
		spec := flow.Spec{Orig: k, Reply: k.Reverse(), Flags: flags}
		for _, m := range more {
			m(&spec)
		}
		if r := flows.Insert(&spec, wire.SYN, 1); r != flow.Inserted {
			t.Fatal(r)
		}
		speak(flows, &spec.Reply, wire.SYN|wire.ACK)
		speak(flows, &spec.Orig, wire.ACK)
		return spec
	}
	udp := func(s *flow.Spec) { s.Orig.Proto, s.Reply.Proto = wire.ProtoUDP, wire.ProtoUDP }
	toHost := func(s *flow.Spec) { s.Reply.Src = host }
	want := []flow.Key{
		insert(pod, outside, 0).Reply,                  // egress
		insert(pod, vip, flow.ToGateway).Reply,         // proxy mode, or DNS
		insert(outside, pod, flow.ReplyToGateway).Orig, // ingress
		insert(pod, vip, 0, toHost).Reply,              // a service whose endpoint is a node
	}
	insert(pod, other, 0)        // between pods
	insert(pod, outside, 0, udp) // relayed
	closed := insert(pod, outside, 0)
	speak(flows, &closed.Orig, wire.RST)

	keys := findOrphans(flows, routes)
	slices.SortFunc(keys, func(a, b flow.Key) int { return int(order(a)) - int(order(b)) })
	slices.SortFunc(want, func(a, b flow.Key) int { return int(order(a)) - int(order(b)) })
	if !slices.Equal(keys, want) {
		t.Fatalf("found %v, want %v", keys, want)
	}
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		o := &orphans{flows: flows, keys: keys, log: slog.New(slog.DiscardHandler)}
		o.provoke = func(k *flow.Key) bool {
			if calls++; calls == 1 {
				return false // the ring is full
			}
			if !k.Dst.Is4() || calls > 6 { // the last has no pod yet
				speak(flows, k, wire.RST)
			} else if *k != want[3] {
				speak(flows, k, wire.RST)
			}
			return true
		}
		began := time.Now()
		if err := o.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if calls != 7 || len(o.keys) != 0 {
			t.Errorf("%d calls, %d left; want one for the full ring, four, and two for who is late", calls, len(o.keys))
		}
		if took, want := time.Since(began), fullRingPause+orphanPauseMin+2*orphanPauseMin+4*orphanPauseMin; took != want {
			t.Errorf("took %v, want %v", took, want)
		}
		o.keys = []flow.Key{insert(pod, outside, 0).Reply}
		o.provoke = func(*flow.Key) bool { return true } // nobody ever answers
		began = time.Now()
		if err := o.run(t.Context()); err != nil || len(o.keys) != 1 {
			t.Errorf("%v, %d left, want the one that does not answer", err, len(o.keys))
		}
		if took := time.Since(began); took < orphanPatience || took > orphanPatience+orphanPauseMax {
			t.Errorf("given up after %v, want some %v", took, orphanPatience)
		}
	})
}

// order is a port that each connection has alone.
func order(k flow.Key) uint16 { return max(k.SrcPort, k.DstPort) }

func speak(flows *flow.Table, k *flow.Key, tcpFlags uint8) {
	var hit flow.Hit
	flows.Lookup(k, flows.Hash(k), 2, &hit)
	flows.Track(&hit, tcpFlags, 1, 60, 2)
}
