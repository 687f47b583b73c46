package gateway

import (
	"net/netip"
	"testing"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
)

// Looking foretells what Pick gives, and is forgotten.
func TestLookForetellsPick(t *testing.T) {
	g := newTestGateway(t, nil)
	if err := g.PutService(sticky(8)); err != nil {
		t.Fatal(err)
	}
	k := keyTo(vip4, 80, wire.ProtoTCP)
	seen := map[flow.Endpoint]bool{}
	for range 200 {
		l := g.Look(k)
		if l.Reason != drop.None || l.Service != sticky(8).ServiceKey || len(l.Choices) != 8 || !l.Affinity || l.Kept {
			t.Fatalf("looked %+v", l)
		}
		seen[l.Endpoint] = true
	}
	if len(seen) < 2 {
		t.Error("looking remembered the client")
	}
	given, _ := g.Pick(k, nil)
	for range 20 {
		if l := g.Look(k); l.Endpoint != given || !l.Kept {
			t.Fatalf("looked %+v, want the remembered %+v", l, given)
		}
	}

	if l := g.Look(keyTo(vip4, 81, wire.ProtoTCP)); l.Reason != drop.NoService || l.Service != (ServiceKey{}) {
		t.Errorf("a port that no service has: %+v", l)
	}
	if err := g.PutService(web(0)); err != nil {
		t.Fatal(err)
	}
	if l := g.Look(k); l.Reason != drop.NoEndpoint || l.Service != web(0).ServiceKey {
		t.Errorf("a service without endpoints: %+v", l)
	}
}

func TestLookOutside(t *testing.T) {
	g := newTestGateway(t, func(c *Config) { c.DeniedTCP = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:2379")} })
	for _, tt := range []struct {
		dst   string
		port  uint16
		proto uint8
		want  drop.Reason
	}{
		{"198.51.100.7", 443, wire.ProtoTCP, drop.None},
		{"198.51.100.7", 2379, wire.ProtoTCP, drop.EgressDenied},
		{"198.51.100.7", 2379, wire.ProtoUDP, drop.None},
		{"169.254.169.254", 80, wire.ProtoTCP, drop.EgressDenied},
		{"127.0.0.1", 53, wire.ProtoUDP, drop.EgressDenied},
		{"198.51.100.7", 1, wire.ProtoSCTP, drop.UnsupportedL4},
	} {
		dst := wire.AddrFrom(netip.MustParseAddr(tt.dst))
		h := &wire.Headers{Proto: tt.proto, Src: wire.AddrFrom(netip.MustParseAddr("10.244.1.10")), Dst: dst, SrcPort: 1, DstPort: tt.port, HasL4: true}
		to, r := g.LookOutside(h)
		if r != tt.want || r == drop.None && to.String() != tt.dst {
			t.Errorf("%s:%d/%d: to %v, %v; want %v", tt.dst, tt.port, tt.proto, to, r, tt.want)
		}
	}
	if n := g.Stats().EgressForbidden; n != 0 {
		t.Errorf("looking counted %d refusals", n)
	}
}
