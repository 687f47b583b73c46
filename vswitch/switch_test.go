package vswitch_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/queuetest"
)

func newQueues(t *testing.T, n int) []vswitch.Queue {
	t.Helper()
	var qs []vswitch.Queue
	for range n {
		q, err := queuetest.New(64)
		if err != nil {
			t.Fatal(err)
		}
		qs = append(qs, q)
	}
	return qs
}

func newSwitch(t *testing.T, workers int, died func(string, error)) (*vswitch.Switch, *fib.Table) {
	t.Helper()
	flows, err := flow.New(flow.Config{Connections: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	routes := fib.New()
	sw, err := vswitch.New(vswitch.Config{Workers: workers, FIB: routes, Flows: flows, Services: &stubServices{}, QueueDied: died})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close(); flows.Close() })
	return sw, routes
}

func TestAddPortRefusesBadConfig(t *testing.T) {
	good := vswitch.PortConfig{Kind: vswitch.PortPod, Name: "p", MAC: macA, Addrs: []netip.Addr{podA4}, MTUBytes: 1500}
	for _, tt := range []struct {
		name   string
		change func(*vswitch.PortConfig)
		queues int
		want   string
	}{
		{"no name", func(c *vswitch.PortConfig) { c.Name = "" }, 2, "no name"},
		{"no kind", func(c *vswitch.PortConfig) { c.Kind = 0 }, 2, "unknown kind 0"},
		{"too few queues", func(*vswitch.PortConfig) {}, 1, "1 queues, want one for each of 2 workers"},
		{"a tiny MTU", func(c *vswitch.PortConfig) { c.MTUBytes = 500 }, 2, "MTU 500, want 576 to 65535"},
		{"a group MAC", func(c *vswitch.PortConfig) { c.MAC = frame.Broadcast }, 2, "want a unicast address"},
		{"no address", func(c *vswitch.PortConfig) { c.Addrs = nil }, 2, "no address"},
		{"a name taken", func(c *vswitch.PortConfig) { c.Name = "taken" }, 2, "a port of that name exists"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sw, _ := newSwitch(t, 2, nil)
			taken := good
			taken.Name, taken.Queues = "taken", newQueues(t, 2)
			if _, err := sw.AddPort(taken); err != nil {
				t.Fatal(err)
			}
			c := good
			c.Queues = newQueues(t, tt.queues)
			tt.change(&c)
			if _, err := sw.AddPort(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			for _, q := range c.Queues {
				if err := q.Receive(nil); !errors.Is(err, queuetest.ErrClosed) {
					t.Error("a refused port's queue was left open")
				}
			}
		})
	}
}

func TestRemovePort(t *testing.T) {
	sw, _ := newSwitch(t, 2, nil)
	qs := newQueues(t, 2)
	id, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortPod, Name: "p", MAC: macA, Addrs: []netip.Addr{podA4}, MTUBytes: 1500, Queues: qs})
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.RemovePort(id); err != nil {
		t.Fatal(err)
	}
	for _, q := range qs {
		if err := q.Receive(nil); !errors.Is(err, queuetest.ErrClosed) {
			t.Error("queue left open")
		}
	}
	if err := sw.RemovePort(id); err == nil {
		t.Error("removed twice without an error")
	}
	if n := len(sw.Stats()); n != 0 {
		t.Errorf("%d ports left", n)
	}
}

func TestDeadQueueIsReported(t *testing.T) {
	died := make(chan string, 1)
	sw, _ := newSwitch(t, 1, func(name string, _ error) { died <- name })
	qs := newQueues(t, 1)
	if _, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortPod, Name: "p", MAC: macA, Addrs: []netip.Addr{podA4}, MTUBytes: 1500, Queues: []vswitch.Queue{dying{qs[0].(*queuetest.Queue)}}}); err != nil {
		t.Fatal(err)
	}
	qs[0].(*queuetest.Queue).Inject(owned(make([]byte, 60)))
	select {
	case name := <-died:
		if name != "p" {
			t.Errorf("port %q reported, want p", name)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("not reported within 5 s")
	}
}

// dying is a queue whose device is gone.
type dying struct{ *queuetest.Queue }

func (dying) Receive(*frame.Batch) error { return errors.New("device is gone") }

// Ports come and go while frames for them are in flight: nothing is sent through
// a queue that was closed, and nothing is left behind.
func TestPortsChangeUnderTraffic(t *testing.T) {
	sw, routes := newSwitch(t, 2, nil)
	src := newQueues(t, 2)
	if _, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortPod, Name: "a", MAC: macA, Addrs: []netip.Addr{podA4}, MTUBytes: 1500, Queues: src}); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range src {
		wg.Go(func() {
			q := src[i].(*queuetest.Queue)
			raw := fromA(wiretest.Packet{Dst: podB4, Proto: 17, SrcPort: uint16(i), DstPort: 9}).Frame()
			for !stop.Load() {
				before := sw.Stats()[0].IngressFrames
				for range 32 {
					q.Inject(owned(raw))
				}
				for sw.Stats()[0].IngressFrames < before+16 && !stop.Load() {
					runtime.Gosched()
				}
			}
		})
	}
	var misuse atomic.Int64
	for range 200 {
		qs := []vswitch.Queue{newGuarded(t, &misuse), newGuarded(t, &misuse)}
		id, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortPod, Name: "b", MAC: macB, Addrs: []netip.Addr{podB4}, MTUBytes: 1500, Queues: qs})
		if err != nil {
			t.Fatal(err)
		}
		routes.SetHost(podB4, fib.NextHop{Kind: fib.Port, Index: id})
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if _, err := qs[0].(*guarded).Next(ctx); err != nil {
			t.Fatal("no frame reached the new port within 5 s")
		}
		cancel()
		routes.DeleteHost(podB4)
		if err := sw.RemovePort(id); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := misuse.Load(); n != 0 {
		t.Errorf("%d sends through a closed queue", n)
	}
}

// guarded counts sends after Close.
type guarded struct {
	*queuetest.Queue
	closed atomic.Bool
	misuse *atomic.Int64
}

func newGuarded(t *testing.T, misuse *atomic.Int64) *guarded {
	t.Helper()
	return &guarded{Queue: newQueues(t, 1)[0].(*queuetest.Queue), misuse: misuse}
}

func (g *guarded) Transmit(fs []*frame.Frame) {
	if g.closed.Load() {
		g.misuse.Add(1)
	}
	g.Queue.Transmit(fs)
}

func (g *guarded) Close() error {
	g.closed.Store(true)
	return g.Queue.Close()
}

func TestCloseLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := openFDs(t)
	for range 3 {
		flows, err := flow.New(flow.Config{Connections: 1 << 8})
		if err != nil {
			t.Fatal(err)
		}
		sw, err := vswitch.New(vswitch.Config{Workers: 3, FIB: fib.New(), Flows: flows, Services: &stubServices{}})
		if err != nil {
			t.Fatal(err)
		}
		id, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortTunnel, Name: "t", MTUBytes: 1500, Queues: newQueues(t, 3)})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sw.Close(), sw.Close(), flows.Close()); err != nil {
			t.Fatal(err)
		}
		if err := sw.RemovePort(id); err != nil {
			t.Errorf("a port that was closed with its switch is not gone: %v", err)
		}
		if _, err := sw.AddPort(vswitch.PortConfig{Kind: vswitch.PortTunnel, Name: "u", MTUBytes: 1500, Queues: newQueues(t, 3)}); err == nil {
			t.Error("a port was added to a closed switch")
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Whatever a pod sends, nothing panics and nothing leaves in another's name.
func FuzzForwardFromPod(f *testing.F) {
	for _, p := range []wiretest.Packet{
		{Dst: podB4, Proto: 6, Flags: 2, SrcPort: 1, DstPort: 2},
		{Dst: vip6, Proto: 17, SrcPort: 1, DstPort: 80},
		{Dst: remote4, Proto: 1, ICMPType: 8, EchoID: 1},
		{Dst: podB4, Proto: 1, ICMPType: 3, Payload: wiretest.Packet{Src: podB4, Dst: podA4, Proto: 17}.IP()},
		{Dst: podB6, Proto: 44, Payload: []byte{17, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 2, 0, 8, 0, 0}},
		{Dst: podB4, Proto: 17, FragmentOffset: 1480, Payload: make([]byte, 20)},
		{Dst: podB4, Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, 2*bedMTU)},
	} {
		f.Add(fromA(p).Frame(), uint8(0), uint8(0), uint16(0), uint16(0), uint16(0))
	}
	f.Add(wiretest.ARP(frame.Broadcast, 1, macA, podA4, frame.MAC{}, vswitch.GatewayIPv4), uint8(1), uint8(1), uint16(1400), uint16(34), uint16(16))
	f.Fuzz(func(t *testing.T, raw []byte, flags, gsoType uint8, gsoSize, csumStart, csumOffset uint16) {
		if len(raw) > frame.MaxBytes {
			return
		}
		b := newBed(t)
		in := owned(raw)
		in.VNet = frame.VNet{Flags: frame.VNetFlags(flags & 3), GSOType: frame.GSOType(gsoType), GSOSize: gsoSize, CsumStart: csumStart, CsumOffset: csumOffset}
		o := b.send("a", in)
		total, pieces := 0, 0
		for name, fs := range o.sent {
			total += len(fs)
			for _, out := range fs {
				var h wire.Headers
				if r := wire.Parse(out.Bytes(), &h); r != drop.None {
					t.Fatalf("left by %s and does not parse: %v", name, r)
				}
				if h.Fragment {
					pieces++
				}
				if src := h.Src.Netip(); name != "a" && src != podA4 && src != podA6 {
					t.Errorf("left by %s from %v", name, src)
				}
				if n := h.End - h.L3Off; n > bedMTU && !out.VNet.IsGSO() {
					t.Errorf("left by %s with %d bytes, more than its MTU", name, n)
				}
			}
		}
		dropped := uint64(0)
		for r, n := range o.drops {
			if r == drop.None {
				t.Error("counted a drop for no reason")
			}
			dropped += n
		}
		var h wire.Headers
		held := wire.Parse(raw, &h) == drop.None && h.LaterFrag // until its datagram's first comes
		if total > 1 && pieces != total || uint64(total)+dropped == 0 && !held {
			t.Errorf("one frame became %d, %d of them fragments, with drops %v", total, pieces, o.drops)
		}
	})
}

// A switch that is held lets frames wait until every port is there.
func TestHeldSwitchTakesNothingUntilStart(t *testing.T) {
	b := newBedOf(t, vswitch.Config{Held: true})
	f := fromA(wiretest.Packet{Dst: podB4, Proto: wire.ProtoUDP, SrcPort: 40000, DstPort: 53})
	b.queues["a"].Inject(owned(f.Frame()))
	if err := b.sw.RemovePort(b.ids["b"]); err != nil { // whoever polled would have done so by now
		t.Fatal(err)
	}
	if n := b.stats("a").IngressFrames; n != 0 {
		t.Fatalf("%d frames taken before the start", n)
	}
	b.add("b", vswitch.PortConfig{Kind: vswitch.PortPod, MAC: macB, Addrs: []netip.Addr{podB4, podB6}, MTUBytes: bedMTU})
	if err := b.sw.Start(); err != nil {
		t.Fatal(err)
	}
	o := b.send("a", owned(f.Frame())) // which comes behind the one that waited
	for deadline := time.Now().Add(5 * time.Second); b.stats("a").IngressFrames < 2; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the frame that waited was not taken within 5 s of the start")
		}
	}
	if sent := len(o.sent["b"]) + len(b.queues["b"].Sent()); sent != 2 || len(b.stats("a").Drops) != 0 {
		t.Errorf("%d frames arrived, drops %v; want both", sent, b.stats("a").Drops)
	}
}
