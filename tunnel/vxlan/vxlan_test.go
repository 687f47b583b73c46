//go:build linux

package vxlan_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload/offloadtest"
	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

func TestFramesArriveWhole(t *testing.T) {
	random := func(n int, seed uint64) []byte { return offloadtest.Random(n, seed) }
	tcp := func(n int, seed uint64) *offloadtest.Packet { return offloadtest.TCP4(random(n, seed)) }
	partial := func(p *offloadtest.Packet) *frame.Frame {
		f := p.Super(0)
		f.VNet.GSOType, f.VNet.GSOSize = frame.GSONone, 0
		return f
	}
	// Each shape gives frames, and the packets they are to arrive as.
	shapes := []struct {
		name string
		make func() ([]*frame.Frame, []*offloadtest.Packet)
	}{
		{"a small datagram", func() ([]*frame.Frame, []*offloadtest.Packet) {
			p := tcp(10, 1).ToUDP()
			return []*frame.Frame{plain(p)}, []*offloadtest.Packet{p}
		}},
		{"a small IPv6 datagram", func() ([]*frame.Frame, []*offloadtest.Packet) {
			p := tcp(10, 1).ToUDP().ToV6()
			return []*frame.Frame{plain(p)}, []*offloadtest.Packet{p}
		}},
		{"a partial checksum is completed", func() ([]*frame.Frame, []*offloadtest.Packet) {
			p, q := tcp(101, 1), tcp(102, 2).ToUDP().ToV6()
			return []*frame.Frame{partial(p), partial(q)}, []*offloadtest.Packet{p, q}
		}},
		{"many small datagrams", func() ([]*frame.Frame, []*offloadtest.Packet) {
			var fs []*frame.Frame
			var ps []*offloadtest.Packet
			for i := range 200 {
				p := tcp(18+i%3, uint64(i)).ToUDP()
				fs, ps = append(fs, plain(p)), append(ps, p)
			}
			return fs, ps
		}},
		{"a full TCP super-frame", func() ([]*frame.Frame, []*offloadtest.Packet) {
			p := tcp(64000, 1)
			p.Flags |= wire.PSH
			return []*frame.Frame{p.Super(1390)}, p.Cut(1390)
		}},
		{"TCP super-frames over IPv6 of one flow", func() ([]*frame.Frame, []*offloadtest.Packet) {
			var fs []*frame.Frame
			var ps []*offloadtest.Packet
			for i := range 5 {
				p := tcp(30000, uint64(i)).ToV6()
				p.Seq += uint32(30000 * i)
				fs, ps = append(fs, p.Super(1300)), append(ps, p.Cut(1300)...)
			}
			return fs, ps
		}},
		{"a UDP super-frame", func() ([]*frame.Frame, []*offloadtest.Packet) {
			p := tcp(20000, 1).ToUDP()
			return []*frame.Frame{p.Super(1200)}, p.Cut(1200)
		}},
		{"everything mixed", func() ([]*frame.Frame, []*offloadtest.Packet) {
			var fs []*frame.Frame
			var ps []*offloadtest.Packet
			for i := range 10 {
				s := tcp(5000, uint64(i))
				s.SrcPort = uint16(i)
				u := tcp(40, uint64(i)).ToUDP()
				fs = append(fs, s.Super(1000), plain(u))
				ps = append(append(ps, s.Cut(1000)...), u)
			}
			return fs, ps
		}},
	}
	forEachFamily(t, func(t *testing.T, underlay netip.Addr) {
		for _, trains := range []bool{true, false} {
			for _, noCoalesce := range []bool{false, true} {
				for _, tt := range shapes {
					t.Run(fmt.Sprintf("%s, trains %v, as they came %v", tt.name, trains, noCoalesce), func(t *testing.T) {
						a, b := pair(t, underlay, func(c *vxlan.Config) { c.Offload, c.NoCoalesce = trains, noCoalesce })
						fs, ps := tt.make()
						want := map[string]int{}
						for _, p := range ps {
							want[string(withMACs(p.Bytes(false)))]++
						}
						transmit(a.Queue(0), idB, fs...)
						for i, f := range fs {
							if f.Drop != drop.None {
								t.Fatalf("frame %d: %v", i, f.Drop)
							}
						}
						got := receive(t, b.Queue(0), len(ps))
						if noCoalesce && len(got) != len(ps) {
							t.Errorf("%d frames of %d packets: some were merged", len(got), len(ps))
						}
						for _, f := range got {
							if f.Drop != drop.None || f.Peer != idA {
								t.Fatalf("arrived from member %d with %v", f.Peer, f.Drop)
							}
							for _, packet := range expand(t, f) {
								if want[string(packet)]--; want[string(packet)] < 0 {
									t.Fatalf("a packet that was not sent, or not so often: %x", packet[:60])
								}
							}
						}
					})
				}
			}
		}
	})
}

func TestSuperFramesCrossAsSuperFrames(t *testing.T) {
	a, b := pair(t, loopbacks["IPv4"], nil)
	p := offloadtest.TCP4(offloadtest.Random(60000, 1))
	f := p.Super(1398)
	transmit(a.Queue(0), idB, f)
	got := receive(t, b.Queue(0), 43)
	if len(got) != 1 {
		t.Fatalf("%d frames, want one", len(got))
	}
	if want := withMACs(p.Super(1398).Bytes()); !bytes.Equal(got[0].Bytes(), want) || got[0].VNet != p.Super(1398).VNet {
		t.Errorf("the super-frame changed on its way: %+v, want %+v", got[0].VNet, p.Super(1398).VNet)
	}
}

// Whatever was sent, no outer packet exceeds the underlay's MTU.
func TestNothingExceedsTheUnderlayMTU(t *testing.T) {
	for name, overhead := range map[string]int{"IPv4": 50, "IPv6": 70} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, loopbacks[name], nil)
			fits := offloadtest.TCP4(nil)
			fits.Payload = offloadtest.Random(1500-overhead-40, 1)
			longer := offloadtest.TCP4(offloadtest.Random(1500-overhead-40+1, 1))
			super := offloadtest.TCP4(offloadtest.Random(20000, 1))
			tests := []struct {
				name string
				f    *frame.Frame
				want drop.Reason
			}{
				{"a packet of the pod MTU", plain(fits), drop.None},
				{"one byte more", plain(longer), drop.TooBig},
				{"segments of the pod MTU", super.Super(1500 - overhead - 40), drop.None},
				{"segments one byte longer", super.Super(1500 - overhead - 40 + 1), drop.TooBig},
			}
			for _, tt := range tests {
				transmit(a.Queue(0), idB, tt.f)
				if tt.f.Drop != tt.want {
					t.Errorf("%s: %v, want %v", tt.name, tt.f.Drop, tt.want)
				}
			}
			for _, f := range receive(t, b.Queue(0), 2) {
				for _, p := range expand(t, f) {
					if n := len(p) - 14 + overhead; n > 1500 {
						t.Errorf("an outer packet of %d bytes", n)
					}
				}
			}
		})
	}
}

func TestTransmitNamesWhatItCannotSend(t *testing.T) {
	a, _ := pair(t, loopbacks["IPv4"], nil)
	runt := frame.New()
	runt.Set(make([]byte, 13))
	bad := offloadtest.TCP4(offloadtest.Random(3000, 1)).Super(1000)
	bad.VNet.CsumStart = 2
	broken := offloadtest.TCP4(offloadtest.Random(3000, 1)).Super(1000)
	broken.Bytes()[14] = 0x65
	tests := []struct {
		name string
		f    *frame.Frame
		peer uint32
		want drop.Reason
	}{
		{"no such member", plain(offloadtest.TCP4(nil)), 99, drop.NoPeer},
		{"no member at all", plain(offloadtest.TCP4(nil)), 0, drop.NoPeer},
		{"a runt", runt, idB, drop.Truncated},
		{"metadata that contradicts the frame", bad, idB, drop.BadOffload},
		{"a super-frame that does not parse", broken, idB, drop.BadVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			transmit(a.Queue(0), tt.peer, tt.f)
			if tt.f.Drop != tt.want {
				t.Errorf("got %v, want %v", tt.f.Drop, tt.want)
			}
		})
	}
}

func TestAFlowKeepsItsPortAndFlowsSpread(t *testing.T) {
	a, b := pair(t, loopbacks["IPv4"], func(c *vxlan.Config) { c.Sockets = 4 })
	const flows = 64
	seen := map[uint32]int{}
	batch := frame.NewBatch(frame.BatchFrames)
	for flow := range uint32(flows) {
		for range 3 {
			f := plain(offloadtest.TCP4(nil).ToUDP())
			f.Hash = flow * 0x9e3779b1
			transmit(a.Queue(int(flow%4)), idB, f)
			at := -1
			for i := range 4 {
				batch.Reset()
				if err := b.Queue(i).Receive(batch); err != nil {
					t.Fatal(err)
				}
				if batch.Len() > 0 {
					at = i
				}
			}
			if at < 0 {
				t.Fatal("the frame did not arrive")
			}
			if before, ok := seen[flow]; ok && before != at {
				t.Fatalf("flow %d came to queue %d and %d", flow, before, at)
			}
			seen[flow] = at
		}
	}
	var perQueue [4]int
	for _, at := range seen {
		perQueue[at]++
	}
	for i, n := range perQueue {
		if n < flows/16 {
			t.Errorf("queue %d got %d of %d flows", i, n, flows)
		}
	}
}

// A train may hold more packets than the batch has room for: nothing is lost,
// and PollFD stays readable until the last is out.
func TestFullBatchLosesNothing(t *testing.T) {
	a, b := pair(t, loopbacks["IPv4"], nil)
	const packets = 60
	var fs []*frame.Frame
	for i := range packets {
		p := offloadtest.TCP4([]byte{byte(i)}).ToUDP()
		fs = append(fs, plain(p))
	}
	transmit(a.Queue(0), idB, fs...)
	batch := frame.NewBatch(7)
	var got []byte
	for len(got) < packets {
		waitReadable(t, b.Queue(0).PollFD())
		batch.Reset()
		if err := b.Queue(0).Receive(batch); err != nil {
			t.Fatal(err)
		}
		for i := range batch.Len() {
			f := batch.At(i).Bytes()
			got = append(got, f[len(f)-1])
		}
	}
	for i := range got {
		if got[i] != byte(i) {
			t.Fatalf("packet %d came as number %d", got[i], i)
		}
	}
	batch.Reset()
	if err := b.Queue(0).Receive(batch); err != nil || batch.Len() != 0 {
		t.Errorf("%d more packets (%v)", batch.Len(), err)
	}
	if isReadable(t, b.Queue(0)) {
		t.Error("the descriptor is readable though nothing is pending")
	}
}

func TestNothingAllocates(t *testing.T) {
	a, b := pair(t, loopbacks["IPv4"], nil)
	super := offloadtest.TCP4(offloadtest.Random(60000, 1)).Super(1398)
	small := plain(offloadtest.TCP4(offloadtest.Random(64, 1)).ToUDP())
	fs := []*frame.Frame{small, super, small}
	batch := frame.NewBatch(frame.BatchFrames)
	n := testing.AllocsPerRun(20, func() {
		transmit(a.Queue(0), idB, fs...)
		batch.Reset()
		if err := b.Queue(0).Receive(batch); err != nil {
			t.Fatal(err)
		}
		if batch.Len() != 3 {
			t.Fatalf("%d frames, want 3", batch.Len())
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	good := vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macA}
	tests := []struct {
		name   string
		change func(*vxlan.Config)
	}{
		{"no underlay", func(c *vxlan.Config) { c.Underlays = nil }},
		{"wildcard underlay", func(c *vxlan.Config) { c.Underlays = []netip.Addr{netip.IPv4Unspecified()} }},
		{"two underlays of a family", func(c *vxlan.Config) { c.Underlays = append(c.Underlays, netip.MustParseAddr("127.0.0.2")) }},
		{"an underlay that is not ours", func(c *vxlan.Config) { c.Underlays = []netip.Addr{netip.MustParseAddr("192.0.2.77")} }},
		{"too many sockets", func(c *vxlan.Config) { c.Sockets = 65 }},
		{"ports beyond the last", func(c *vxlan.Config) { c.Port, c.Sockets = 65535, 2 }},
		{"a VNI of 25 bits", func(c *vxlan.Config) { c.VNI = 1 << 24 }},
		{"an ingress VNI that is the VNI", func(c *vxlan.Config) { c.IngressVNI = vxlan.DefaultVNI }},
		{"no MAC", func(c *vxlan.Config) { c.MAC = frame.MAC{} }},
		{"a multicast MAC", func(c *vxlan.Config) { c.MAC = frame.Broadcast }},
		{"a negative MTU", func(c *vxlan.Config) { c.UnderlayMTUBytes = -1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			tun, err := vxlan.New(cfg)
			if err == nil {
				tun.Close()
				t.Error("opened")
			}
		})
	}
}

func TestTakenPorts(t *testing.T) {
	first := open(t, vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macA})
	taken := first.Ports()[0]
	_, err := vxlan.New(vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macB, Port: taken})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("first port taken: %v, want %v", err, unix.EADDRINUSE)
	}
	second, err := vxlan.New(vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macB, Port: taken - 1, Sockets: 2})
	if err != nil {
		t.Skipf("port %d next to ours belongs to another program: %v", taken-1, err)
	}
	defer second.Close()
	if got := second.Ports(); len(got) != 1 || got[0] != taken-1 {
		t.Fatalf("ports %v, want only %d", got, taken-1)
	}
	// The queue without a socket still sends, from the port that was had.
	setPeer(t, second, vxlan.Peer{ID: 1, Node: "a", Underlay: loopbacks["IPv4"], Ports: first.Ports(), MAC: macA})
	setPeer(t, first, vxlan.Peer{ID: 2, Node: "b", Underlay: loopbacks["IPv4"], Ports: second.Ports(), MAC: macB})
	f := plain(offloadtest.TCP4(nil))
	transmit(second.Queue(1), 1, f)
	if got := receive(t, first.Queue(0), 1); got[0].Drop != drop.None || got[0].Peer != 2 {
		t.Errorf("arrived from member %d with %v", got[0].Peer, got[0].Drop)
	}
}

// Opening and closing, also where opening fails half-way, leaves no descriptor.
func TestNoDescriptorLeaks(t *testing.T) {
	cfg := vxlan.Config{Underlays: []netip.Addr{loopbacks["IPv4"]}, MAC: macA, Offload: true, Sockets: 3}
	first := open(t, cfg)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := count()
	for range 5 {
		cfg.Port = first.Ports()[0]
		if tun, err := vxlan.New(cfg); err == nil {
			tun.Close()
			t.Fatal("opened on a port that is taken")
		}
		cfg.Port = first.Ports()[0] - 1 // its other two are taken, most likely
		if tun, err := vxlan.New(cfg); err == nil {
			if err := errors.Join(tun.Close(), tun.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestPodMTU(t *testing.T) {
	lo, err := vxlan.LinkMTU(loopbacks["IPv4"])
	if err != nil || lo < 1280 {
		t.Fatalf("MTU of lo: %d, %v", lo, err)
	}
	if got, err := vxlan.PodMTU(loopbacks["IPv4"]); err != nil || got != min(lo-50, 65535-70) {
		t.Errorf("over lo: %d, %v", got, err)
	}
	if _, err := vxlan.PodMTU(netip.MustParseAddr("192.0.2.77")); err == nil {
		t.Error("an address that no link has is no error")
	}
}

func TestClosedQueueIsDead(t *testing.T) {
	a, _ := pair(t, loopbacks["IPv4"], nil)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Queue(0).Receive(frame.NewBatch(1)); !errors.Is(err, udp.ErrClosed) {
		t.Errorf("Receive: %v, want %v", err, udp.ErrClosed)
	}
}
