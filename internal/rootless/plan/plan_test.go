package plan

import (
	"net/netip"
	"testing"
)

func TestNetsAreLaidOutAsSlirp4netnsDoes(t *testing.T) {
	for _, tt := range []struct{ prefix, router, dns, addr string }{
		{"10.0.2.0/24", "10.0.2.2", "10.0.2.3", "10.0.2.100"},
		{"192.0.2.128/25", "192.0.2.130", "192.0.2.131", "192.0.2.228"},
		{"10.5.0.77/16", "10.5.0.2", "10.5.0.3", "10.5.0.100"},
		{"fd00::/64", "fd00::2", "fd00::3", "fd00::100"},
		{"2001:db8::400/118", "2001:db8::402", "2001:db8::403", "2001:db8::500"},
	} {
		n, err := NetOf(netip.MustParsePrefix(tt.prefix))
		if err != nil {
			t.Errorf("%s: %v", tt.prefix, err)
			continue
		}
		if got := [3]string{n.Router.String(), n.DNS.String(), n.Addr.String()}; got != [3]string{tt.router, tt.dns, tt.addr} {
			t.Errorf("%s: %v, want %s, %s and %s", tt.prefix, got, tt.router, tt.dns, tt.addr)
		}
		if !n.Prefix.Contains(n.Addr) {
			t.Errorf("%s: %v lies outside", tt.prefix, n.Addr)
		}
	}
	for _, bad := range []string{"10.0.2.0/26", "fd00::/119", "127.0.0.0/8", "::ffff:10.0.2.0/120", "224.0.0.0/8"} {
		if n, err := NetOf(netip.MustParsePrefix(bad)); err == nil {
			t.Errorf("%s is laid out as %+v", bad, n)
		}
	}
	if _, err := NetsOf([]netip.Prefix{DefaultIPv4, netip.MustParsePrefix("10.1.0.0/16")}); err == nil {
		t.Error("two networks of one family are taken")
	}
	if _, err := NetsOf(nil); err == nil {
		t.Error("no network is taken")
	}
}

func TestPlansThatCannotWorkAreRefused(t *testing.T) {
	nets, err := NetsOf([]netip.Prefix{DefaultIPv4, DefaultIPv6})
	if err != nil {
		t.Fatal(err)
	}
	good := Plan{Interface: "tap0", MTUBytes: 65520, Queues: 2, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Nets: nets}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Plan){
		"a small MTU":     func(p *Plan) { p.MTUBytes = 1279 },
		"a large MTU":     func(p *Plan) { p.MTUBytes = 65522 },
		"no worker":       func(p *Plan) { p.Queues = 0 },
		"no network":      func(p *Plan) { p.Nets = nil },
		"a multicast MAC": func(p *Plan) { p.MAC[0] = 1 },
	} {
		p := good
		change(&p)
		if p.Check() == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
