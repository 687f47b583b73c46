package node

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

func TestOneLookServesAllThatWentSinceTheLast(t *testing.T) {
	flows, err := flow.New(flow.Config{Connections: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer flows.Close()
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		f := newForgetting(flows, func(netip.Addr) bool { return false })
		f.serve(func() {
			looks.Add(1)
			time.Sleep(2 * time.Millisecond) // what a look takes
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.run(ctx) }()
		defer func() { cancel(); <-done }()
		goes := func() {
			f.add(&gateway.Gone{Protocol: wire.ProtoUDP, VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.53")}, Port: 53, Endpoint: 1})
		}
		want := func(n int32, when string) {
			t.Helper()
			synctest.Wait()
			if is := looks.Load(); is != n {
				t.Errorf("%d looks %s, want %d", is, when, n)
			}
		}
		goes()
		want(1, "at the first")
		for range 20 {
			goes()
			time.Sleep(5 * time.Millisecond)
		}
		want(1, "within a hundred times what a look takes")
		time.Sleep(150 * time.Millisecond)
		want(2, "after that")
		time.Sleep(time.Minute)
		want(2, "while nothing goes")
		goes()
		want(3, "at the first after a while")
	})
}
