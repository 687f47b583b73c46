package nodeapi

import (
	"testing"

	"google.golang.org/grpc/codes"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/wire"
)

func TestTraceAsksForWhatWasAsked(t *testing.T) {
	b := newBench(t)
	reply, err := b.Trace(t.Context(), &apiv1.TraceRequest{Pod: "default/web", To: "fd00::1", Port: 80, Protocol: "udp", SourcePort: 9})
	if err != nil || reply.GetOutcome().GetVerdict() != "delivered" {
		t.Fatalf("%v, %v", reply, err)
	}
	q := b.traced
	if q.Namespace != "default" || q.Name != "web" || q.To.String() != "fd00::1" || q.Port != 80 || q.Protocol != wire.ProtoUDP || q.SourcePort != 9 {
		t.Errorf("asked for %+v", q)
	}
	for text, r := range map[string]*apiv1.TraceRequest{
		"NAMESPACE/NAME":       {Pod: "web", To: "10.0.0.1", Protocol: "icmp"},
		"want an IP address":   {Pod: "a/b", To: "web", Protocol: "icmp"},
		"tcp, udp, sctp":       {Pod: "a/b", To: "10.0.0.1", Protocol: "gre"},
		"1 to 65535 for tcp":   {Pod: "a/b", To: "10.0.0.1", Protocol: "tcp"},
		"none for icmp":        {Pod: "a/b", To: "10.0.0.1", Protocol: "icmp", Port: 1},
		"want at most 65535":   {Pod: "a/b", To: "10.0.0.1", Protocol: "tcp", Port: 65536},
		`"::ffff:10.0.0.1"`:    {Pod: "a/b", To: "::ffff:10.0.0.1", Protocol: "icmp"},
		`"fe80::1%eth0": want`: {Pod: "a/b", To: "fe80::1%eth0", Protocol: "icmp"},
	} {
		_, err := b.Trace(t.Context(), r)
		wantCode(t, err, codes.InvalidArgument, text)
	}
}
