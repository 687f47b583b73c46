package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/internal/pcapfilter"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// Captures shows what the switch carries.
type Captures interface {
	// Capture begins one.
	Capture(vswitch.CaptureConfig) (*vswitch.Capture, error)
	// PodPort is the name of the port of a pod of this node. errors.Is
	// attach.ErrNotFound: it has none here.
	PodPort(namespace, name string) (string, error)
	// Tunnel is the name of the tunnel's port.
	Tunnel() string
	// PeerNode is the node behind a tunnel member, or "".
	PeerNode(peer uint32) string
}

// maxBatchBytes of frames, or of rows, go into one reply, well below what gRPC takes.
const maxBatchBytes = 1 << 20

// maxCaptureMilliseconds is a year: beyond it a bound means nothing, and overflows.
const maxCaptureMilliseconds = 365 * 24 * 3600 * 1000

// Capture implements apiv1.NodeServer.
func (s *Server) Capture(r *apiv1.CaptureRequest, stream apiv1.Node_CaptureServer) error {
	cfg, err := s.captureConfig(r)
	if err != nil {
		return statusOf(err)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	if ms := r.GetMaxMilliseconds(); ms != 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, time.Duration(min(ms, maxCaptureMilliseconds))*time.Millisecond)
		defer done()
	}
	c, err := s.cfg.Captures.Capture(*cfg)
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	defer c.Close()
	if err := stream.Send(&apiv1.CaptureReply{}); err != nil {
		return err
	}
	if err := s.sendFrames(ctx, c, r.GetMaxPackets(), stream); err != nil {
		return err
	}
	c.Close()
	return stream.Send(&apiv1.CaptureReply{Ended: true, Lost: c.Lost()})
}

func (s *Server) captureConfig(r *apiv1.CaptureRequest) (*vswitch.CaptureConfig, error) {
	filter, err := pcapfilter.Compile(r.GetFilter())
	if err != nil {
		return nil, err
	}
	cfg := &vswitch.CaptureConfig{DropsOnly: r.GetDrops(), Filter: filter, SnapBytes: int(r.GetSnapBytes())}
	switch {
	case r.GetPod() != "" && r.GetTunnel():
		return nil, &attach.InvalidError{Field: "pod", Value: r.GetPod(), Want: "either a pod or the tunnel"}
	case r.GetTunnel():
		cfg.Port = s.cfg.Captures.Tunnel()
	case r.GetPod() != "":
		namespace, name, ok := strings.Cut(r.GetPod(), "/")
		if !ok {
			return nil, &attach.InvalidError{Field: "pod", Value: r.GetPod(), Want: "NAMESPACE/NAME"}
		}
		cfg.Port, err = s.cfg.Captures.PodPort(namespace, name)
	}
	return cfg, err
}

// sendFrames sends until ctx or the capture ends, or most have been sent (0: no
// bound), which are no errors.
func (s *Server) sendFrames(ctx context.Context, c *vswitch.Capture, most uint64, stream apiv1.Node_CaptureServer) error {
	sent := uint64(0)
	for {
		frames, err := c.Next(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return stream.Context().Err()
		}
		if err != nil {
			return internal(err)
		}
		if most != 0 {
			frames = frames[:min(uint64(len(frames)), most-sent)]
		}
		sent += uint64(len(frames))
		for len(frames) > 0 {
			reply := &apiv1.CaptureReply{Lost: c.Lost()}
			for bytes := 0; len(frames) > 0 && bytes < maxBatchBytes; frames = frames[1:] {
				reply.Packets = append(reply.Packets, s.wirePacket(&frames[0]))
				bytes += len(frames[0].Data)
			}
			if err := stream.Send(reply); err != nil {
				return err
			}
		}
		if sent == most && most != 0 {
			return nil
		}
	}
}

func (s *Server) wirePacket(c *vswitch.Captured) *apiv1.CapturedPacket {
	p := &apiv1.CapturedPacket{
		UnixNano: c.UnixNano, Interface: interfaceName(c), Port: c.Port, Egress: c.Direction == vswitch.Egress,
		Bytes: uint32(c.Bytes), Data: c.Data,
	}
	if c.Peer != 0 {
		p.Peer = s.cfg.Captures.PeerNode(c.Peer)
	}
	if c.Drop != drop.None {
		p.Drop = c.Drop.String()
	}
	if c.VNet.IsGSO() {
		p.SegmentBytes, p.SegmentKind = uint32(c.VNet.GSOSize), segmentKind(c.VNet.GSOType)
	}
	return p
}

// interfaceName is a pod's namespace and name, of what its port is called by.
func interfaceName(c *vswitch.Captured) string {
	if c.Kind != vswitch.PortPod {
		return c.Port
	}
	parts := strings.SplitN(c.Port, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

func segmentKind(t frame.GSOType) string {
	switch t.Kind() {
	case frame.GSOTCPv4:
		return "tcp4"
	case frame.GSOTCPv6:
		return "tcp6"
	case frame.GSOUDPL4:
		return "udp"
	}
	return fmt.Sprintf("kind-%d", t.Kind())
}
