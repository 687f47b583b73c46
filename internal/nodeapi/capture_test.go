package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/internal/wire"
	"vswitch/internal/wiretest"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/queuetest"
)

// carrier is a switch with one pod, default/web, and a tunnel to node b.
type carrier struct {
	*vswitch.Switch
	pod, tunnel *queuetest.Queue
}

const podPort = "default/web/c1/eth0"

func (c *carrier) PodPort(namespace, name string) (string, error) {
	if namespace+"/"+name != "default/web" {
		return "", fmt.Errorf("pod %s/%s is not here: %w", namespace, name, attach.ErrNotFound)
	}
	return podPort, nil
}
func (c *carrier) Tunnel() string { return "tunnel" }
func (c *carrier) PeerNode(peer uint32) string {
	if peer == 7 {
		return "b"
	}
	return ""
}

// noServices are never asked: no frame of these tests is for a service.
type noServices struct{ vswitch.Services }

var podMAC = frame.MAC{2, 0, 0, 0, 0, 1}

func newCarrier(t *testing.T) *carrier {
	t.Helper()
	flows, err := flow.New(flow.Config{Connections: 64})
	if err != nil {
		t.Fatal(err)
	}
	routes := fib.New()
	c := &carrier{}
	if c.Switch, err = vswitch.New(vswitch.Config{FIB: routes, Flows: flows, Services: noServices{}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Switch.Close(); flows.Close() })
	add := func(p vswitch.PortConfig) (*queuetest.Queue, uint32) {
		q, err := queuetest.New(1024)
		if err != nil {
			t.Fatal(err)
		}
		p.Queues, p.MTUBytes = []vswitch.Queue{q}, 1450
		id, err := c.AddPort(p)
		if err != nil {
			t.Fatal(err)
		}
		return q, id
	}
	pod := netip.MustParseAddr("10.244.0.2")
	var id uint32
	c.pod, id = add(vswitch.PortConfig{Kind: vswitch.PortPod, Name: podPort, MAC: podMAC, Addrs: []netip.Addr{pod}})
	c.tunnel, _ = add(vswitch.PortConfig{Kind: vswitch.PortTunnel, Name: "tunnel"})
	routes.SetHost(pod, fib.NextHop{Kind: fib.Port, Index: id})
	routes.SetPrefix(netip.MustParsePrefix("10.244.1.0/24"), fib.NextHop{Kind: fib.Peer, Index: 7})
	return c
}

// send makes the pod send a datagram to node b, and waits until it is there.
func (c *carrier) send(t *testing.T, port uint16) {
	t.Helper()
	f := frame.New()
	f.Set(wiretest.Packet{
		SrcMAC: podMAC, DstMAC: vswitch.GatewayMAC, Src: netip.MustParseAddr("10.244.0.2"), Dst: netip.MustParseAddr("10.244.1.2"),
		Proto: wire.ProtoUDP, SrcPort: 9, DstPort: port, Payload: []byte("hello"),
	}.Frame())
	c.pod.Inject(f)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.tunnel.Next(ctx); err != nil {
		t.Fatal(err)
	}
}

// begin starts a capture and waits until it is in effect.
func begin(t *testing.T, ctx context.Context, b *bench, r *apiv1.CaptureRequest) apiv1.Node_CaptureClient {
	t.Helper()
	stream, err := b.Capture(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := stream.Recv(); err != nil || len(reply.GetPackets()) != 0 {
		t.Fatalf("first reply %v, %v; want one without packets", reply, err)
	}
	return stream
}

func receive(t *testing.T, stream apiv1.Node_CaptureClient, n int) []*apiv1.CapturedPacket {
	t.Helper()
	var all []*apiv1.CapturedPacket
	for len(all) < n {
		reply, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, reply.GetPackets()...)
	}
	return all
}

func TestCaptureStreams(t *testing.T) {
	b := newBench(t)
	stream := begin(t, t.Context(), b, &apiv1.CaptureRequest{MaxPackets: 3})
	b.carrier.send(t, 53)
	all := receive(t, stream, 2)
	b.carrier.send(t, 53)
	all = append(all, receive(t, stream, 1)...)
	in, out := all[0], all[1]
	if in.Interface != "default/web" || in.Port != podPort || in.Egress || in.Peer != "" || in.Bytes != 47 || len(in.Data) != 47 {
		t.Errorf("entered: %v", in)
	}
	if out.Interface != "tunnel" || !out.Egress || out.Peer != "b" {
		t.Errorf("left: %v", out)
	}
	last, err := stream.Recv()
	if err != nil || !last.Ended || last.Lost != 0 {
		t.Errorf("last reply %v, %v; want the end after three packets", last, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestCaptureOfAPodWithAFilter(t *testing.T) {
	b := newBench(t)
	stream := begin(t, t.Context(), b, &apiv1.CaptureRequest{Pod: "default/web", Filter: "udp port 54", SnapBytes: 20, MaxPackets: 1})
	for port := range uint16(3) {
		b.carrier.send(t, 53+port)
	}
	if p := receive(t, stream, 1)[0]; p.Interface != "default/web" || len(p.Data) != 20 || p.Bytes != 47 {
		t.Errorf("captured %v, want the one to port 54 as the pod sent it", p)
	}
}

func TestCaptureEndsInTime(t *testing.T) {
	b := newBench(t)
	stream := begin(t, t.Context(), b, &apiv1.CaptureRequest{Tunnel: true, MaxMilliseconds: 1})
	if last, err := stream.Recv(); err != nil || !last.Ended {
		t.Errorf("%v, %v; want the end", last, err)
	}
}

// A client that leaves ends its capture: eight may run, and the ninth finds room then.
func TestClientsThatLeaveEndTheirCaptures(t *testing.T) {
	b := newBench(t)
	ctx, leave := context.WithCancel(t.Context())
	for range 8 {
		begin(t, ctx, b, &apiv1.CaptureRequest{})
	}
	refused, err := b.Capture(t.Context(), &apiv1.CaptureRequest{})
	if err == nil {
		_, err = refused.Recv()
	}
	wantCode(t, err, codes.FailedPrecondition, "8 captures are running")
	leave()
	for start := time.Now(); ; {
		stream, err := b.Capture(t.Context(), &apiv1.CaptureRequest{MaxMilliseconds: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); err == nil {
			return
		}
		if status.Code(err) != codes.FailedPrecondition || time.Since(start) > 5*time.Second {
			t.Fatalf("no room after all have left: %v", err)
		}
	}
}

func TestACaptureDoesNotHoldUpTheServersEnd(t *testing.T) {
	b := newBench(t)
	stream := begin(t, t.Context(), b, &apiv1.CaptureRequest{})
	start := time.Now()
	if err := b.server.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took >= stopTimeout {
		t.Errorf("Close took %v, as long as it waits for calls that don't end", took)
	}
	if last, err := stream.Recv(); err != nil || !last.Ended {
		t.Errorf("%v, %v; want the end", last, err)
	}
}

func TestBadCaptures(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		request *apiv1.CaptureRequest
		code    codes.Code
		text    string
	}{
		{&apiv1.CaptureRequest{Filter: "port http"}, codes.InvalidArgument, "want a number"},
		{&apiv1.CaptureRequest{Pod: "default/other"}, codes.NotFound, "default/other is not here"},
		{&apiv1.CaptureRequest{Pod: "web"}, codes.InvalidArgument, "NAMESPACE/NAME"},
		{&apiv1.CaptureRequest{Pod: "default/web", Tunnel: true}, codes.InvalidArgument, "either a pod or the tunnel"},
	} {
		stream, err := b.Capture(t.Context(), tt.request)
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, tt.code, tt.text)
	}
}
