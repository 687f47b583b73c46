package nodeapi

import (
	"context"
	"net/netip"
	"strings"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/internal/wire"
)

// TraceQuery is a packet to be traced.
type TraceQuery struct {
	Namespace, Name string
	To              netip.Addr
	Protocol        uint8  // wire.ProtoTCP, ProtoUDP, ProtoSCTP, or ProtoICMP for an echo request of either family
	Port            uint16 // 0 for ICMP
	SourcePort      uint16 // 0: any
}

var traceProtocols = map[string]uint8{
	"tcp": wire.ProtoTCP, "udp": wire.ProtoUDP, "sctp": wire.ProtoSCTP, "icmp": wire.ProtoICMP,
}

// Trace implements apiv1.NodeServer.
func (s *Server) Trace(_ context.Context, r *apiv1.TraceRequest) (*apiv1.TraceReply, error) {
	invalid := func(field, value, want string) (*apiv1.TraceReply, error) {
		return nil, statusOf(&attach.InvalidError{Field: field, Value: value, Want: want})
	}
	q := TraceQuery{Port: uint16(r.GetPort()), SourcePort: uint16(r.GetSourcePort())}
	var ok bool
	if q.Namespace, q.Name, ok = strings.Cut(r.GetPod(), "/"); !ok {
		return invalid("pod", r.GetPod(), "NAMESPACE/NAME")
	}
	var err error
	if q.To, err = netip.ParseAddr(r.GetTo()); err != nil || q.To.Zone() != "" || q.To.Is4In6() {
		return invalid("to", r.GetTo(), "an IP address")
	}
	if q.Protocol, ok = traceProtocols[r.GetProtocol()]; !ok {
		return invalid("protocol", r.GetProtocol(), "tcp, udp, sctp or icmp")
	}
	switch {
	case r.GetPort() > 65535 || r.GetSourcePort() > 65535:
		return invalid("port", "", "at most 65535")
	case q.Protocol == wire.ProtoICMP && q.Port != 0:
		return invalid("port", "", "none for icmp")
	case q.Protocol != wire.ProtoICMP && q.Port == 0:
		return invalid("port", "", "1 to 65535 for "+r.GetProtocol())
	}
	reply, err := s.cfg.Trace(q)
	if err != nil {
		return nil, statusOf(err)
	}
	return reply, nil
}
