package vswitch_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vswitch/internal/pcapfilter"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

func (b *bed) capture(c vswitch.CaptureConfig) *vswitch.Capture {
	b.t.Helper()
	cap, err := b.sw.Capture(c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(cap.Close)
	return cap
}

// captured ends a capture and gives all of it.
func (b *bed) captured(c *vswitch.Capture) []vswitch.Captured {
	b.t.Helper()
	c.Close()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	var all []vswitch.Captured
	for {
		some, err := c.Next(ctx)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			b.t.Fatal(err)
		}
		all = append(all, some...)
	}
}

func filter(t *testing.T, text string) *pcapfilter.Filter {
	t.Helper()
	f, err := pcapfilter.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tcpTo(dst string, port uint16) *frame.Frame {
	p := wiretest.Packet{Proto: wire.ProtoTCP, SrcPort: 4000, DstPort: port, Flags: wire.SYN, Payload: []byte("hello")}
	p.Dst = netip.MustParseAddr(dst)
	return owned(fromA(p).Frame())
}

// A flow to a service is seen with the VIP where it enters and with the endpoint
// where it leaves.
func TestCaptureShowsBothSides(t *testing.T) {
	b := newBed(t)
	c := b.capture(vswitch.CaptureConfig{})
	start := time.Now()
	b.send("a", tcpTo(vip4.String(), 80))
	got := b.captured(c)
	if len(got) != 2 || c.Lost() != 0 {
		t.Fatalf("%d records, %d lost; want 2, 0", len(got), c.Lost())
	}
	in, out := got[0], got[1]
	if in.Port != "a" || in.Direction != vswitch.Ingress || out.Port != "b" || out.Direction != vswitch.Egress || out.Kind != vswitch.PortPod {
		t.Errorf("%s %v, %s %v; want a in, b out", in.Port, in.Direction, out.Port, out.Direction)
	}
	if h := parse(t, in.Data); h.Dst.Netip() != vip4 || h.TTL != 64 {
		t.Errorf("entered for %v with TTL %d, want %v and 64", h.Dst, h.TTL, vip4)
	}
	if h := parse(t, out.Data); h.Dst.Netip() != podB4 || h.DstPort != 8080 || h.TTL != 63 {
		t.Errorf("left for %v:%d with TTL %d, want %v:8080 and 63", h.Dst, h.DstPort, h.TTL, podB4)
	}
	if at := time.Unix(0, in.UnixNano); at.Before(start) || at.After(time.Now()) || out.UnixNano < in.UnixNano {
		t.Errorf("times %v, %v are not those of the sending", in.UnixNano, out.UnixNano)
	}
}

func parse(t *testing.T, b []byte) wire.Headers {
	t.Helper()
	var h wire.Headers
	if r := wire.Parse(b, &h); r != drop.None {
		t.Fatalf("captured frame does not parse: %v", r)
	}
	return h
}

// What a pod leaves to its device is finished in the capture, and in it alone.
func TestCaptureCompletesChecksums(t *testing.T) {
	b := newBed(t)
	c := b.capture(vswitch.CaptureConfig{})
	p := fromA(wiretest.Packet{Dst: podB4, Proto: wire.ProtoTCP, SrcPort: 4000, DstPort: 80, Flags: wire.ACK, Payload: make([]byte, 3000)})
	f := owned(p.Frame())
	var h wire.Headers
	wire.Parse(f.Bytes(), &h)
	partial := wire.Fold(wire.PseudoSum(&h, h.End-h.L4Off))
	f.Bytes()[h.L4Off+16], f.Bytes()[h.L4Off+17] = byte(partial>>8), byte(partial)
	f.VNet = frame.VNet{
		Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, GSOSize: 1400, HdrLen: uint16(h.PayloadOff),
		CsumStart: uint16(h.L4Off), CsumOffset: 16,
	}
	sent := b.only(b.send("a", f), "b")
	if sent.VNet.Flags&frame.NeedsCsum == 0 {
		t.Error("the frame itself was completed")
	}
	for _, x := range b.captured(c) {
		if !wiretest.TransportIntact(x.Data) {
			t.Errorf("%s %v: the checksum is not complete", x.Port, x.Direction)
		}
		if x.VNet.GSOSize != 1400 {
			t.Errorf("%s %v: segments of %d bytes, want 1400", x.Port, x.Direction, x.VNet.GSOSize)
		}
	}
}

func TestCaptureNamesDrops(t *testing.T) {
	b := newBed(t)
	b.fib.SetPrefix(netip.MustParsePrefix("10.99.0.0/16"), fib.NextHop{Kind: fib.Unreachable})
	all, drops := b.capture(vswitch.CaptureConfig{}), b.capture(vswitch.CaptureConfig{DropsOnly: true})
	b.send("a", tcpTo("127.0.0.1", 1))     // dropped in silence
	b.send("a", tcpTo("10.99.0.1", 1))     // answered
	b.send("a", tcpTo(vip4.String(), 81))  // refused
	b.send("a", tcpTo(podB4.String(), 80)) // goes through
	b.queues["b"].Refuse(drop.EgressFull)  // the device is full
	b.send("a", tcpTo(podB4.String(), 80)) //
	b.send("b", owned(make([]byte, 5)))    // not even a frame
	want := []drop.Reason{drop.MartianTarget, drop.NoRoute, drop.NoService, drop.EgressFull, drop.Truncated}
	var got []drop.Reason
	for _, x := range b.captured(drops) {
		got = append(got, x.Drop)
	}
	if !slices.Equal(got, want) {
		t.Errorf("drops %v, want %v", got, want)
	}
	byWay := map[vswitch.Direction]map[drop.Reason]int{vswitch.Ingress: {}, vswitch.Egress: {}}
	for _, x := range b.captured(all) {
		byWay[x.Direction][x.Drop]++
	}
	// Each frame entered once; what a full device refused also shows there.
	for _, r := range append(want, drop.None) {
		if n := byWay[vswitch.Ingress][r]; n != 1 {
			t.Errorf("%d frames entered with %v, want 1", n, r)
		}
	}
	if byWay[vswitch.Egress][drop.EgressFull] != 1 || byWay[vswitch.Egress][drop.None] != 3 {
		t.Errorf("left: %v; want one refused, two answers and one delivered", byWay[vswitch.Egress])
	}
}

func TestCaptureKeepsToPortFilterAndLength(t *testing.T) {
	b := newBed(t)
	ofB := b.capture(vswitch.CaptureConfig{Port: "b"})
	ports := b.capture(vswitch.CaptureConfig{Filter: filter(t, "tcp dst port 80"), SnapBytes: 40})
	b.send("a", tcpTo(podB4.String(), 80))
	b.send("a", tcpTo(podB4.String(), 443))
	b.send("a", tcpTo(remote4.String(), 443))
	if got := b.captured(ofB); len(got) != 2 || got[0].Port != "b" {
		t.Errorf("%d frames of port b, want 2", len(got))
	}
	got := b.captured(ports)
	if len(got) != 2 {
		t.Fatalf("%d frames to port 80, want 2: in and out", len(got))
	}
	for _, x := range got {
		if len(x.Data) != 40 || x.Bytes != 14+20+20+5 {
			t.Errorf("%d of %d bytes kept, want 40 of 59", len(x.Data), x.Bytes)
		}
	}
}

// A reader that does not read loses frames, and hears how many; the switch goes on.
func TestCaptureCountsWhatItLoses(t *testing.T) {
	b := newBed(t)
	c := b.capture(vswitch.CaptureConfig{Port: "a", RingBytes: 128 << 10})
	const sent = 200
	f := fromA(wiretest.Packet{Dst: podB4, Proto: wire.ProtoUDP, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1400)}).Frame()
	for range sent {
		b.only(b.send("a", owned(f)), "b")
	}
	got := b.captured(c)
	if len(got)+int(c.Lost()) != sent || c.Lost() == 0 {
		t.Errorf("%d read and %d lost of %d", len(got), c.Lost(), sent)
	}
	if room := 128 << 10 / len(f); len(got) != room {
		t.Errorf("%d kept, want the %d there is room for", len(got), room)
	}
	for i, x := range got {
		if !wiretest.TransportIntact(x.Data) {
			t.Fatalf("frame %d is damaged", i)
		}
	}
}

// A capture that is read while frames come sees all of them.
func TestCaptureIsReadWhileItRuns(t *testing.T) {
	b := newBed(t)
	c := b.capture(vswitch.CaptureConfig{Port: "a", RingBytes: 128 << 10})
	f := fromA(wiretest.Packet{Dst: podB4, Proto: wire.ProtoUDP, SrcPort: 1, DstPort: 2, Payload: make([]byte, 1400)}).Frame()
	for i := range 500 {
		b.send("a", owned(f))
		got, err := c.Next(t.Context())
		if err != nil || len(got) != 1 {
			t.Fatalf("frame %d: %d records, %v; want 1", i, len(got), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next with nothing there and an ended context: %v", err)
	}
}

func TestCapturesAreBounded(t *testing.T) {
	b := newBed(t)
	for range 8 {
		b.capture(vswitch.CaptureConfig{RingBytes: 128 << 10})
	}
	if _, err := b.sw.Capture(vswitch.CaptureConfig{}); err == nil {
		t.Error("a ninth capture was let in")
	}
	for _, bad := range []vswitch.CaptureConfig{{RingBytes: 1}, {RingBytes: 2 << 30}, {SnapBytes: -1}} {
		if _, err := b.sw.Capture(bad); err == nil {
			t.Errorf("%+v was let in", bad)
		}
	}
}

func TestCaptureEndsWithTheSwitch(t *testing.T) {
	b := newBed(t)
	c := b.capture(vswitch.CaptureConfig{})
	if err := b.sw.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("err %v, want io.EOF", err)
	}
	if _, err := b.sw.Capture(vswitch.CaptureConfig{}); err == nil {
		t.Error("a closed switch began a capture")
	}
}
