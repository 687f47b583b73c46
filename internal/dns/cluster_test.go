package dns

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// rest is a record without its TTL, fields parted by one space.
func rest(rr dns.RR) string {
	f := strings.Fields(rr.String())
	return strings.Join(append(f[:1:1], f[3:]...), " ")
}

func TestClusterNames(t *testing.T) {
	const zone = ".svc.cluster.local."
	for _, c := range []struct {
		name  string
		ask   string
		qtype uint16
		rcode int
		want  []string // in any order
	}{
		{name: "a service has its IPv4 address", ask: "web.default" + zone, qtype: dns.TypeA, want: []string{"web.default" + zone + " A 10.96.0.7"}},
		{name: "a service has its IPv6 address", ask: "web.default" + zone, qtype: dns.TypeAAAA, want: []string{"web.default" + zone + " AAAA fd00:10:96::7"}},
		{name: "letters' case makes no difference and comes back as asked", ask: "WEB.dEFAULT.Svc.Cluster.LOCAL.", qtype: dns.TypeA, want: []string{"WEB.dEFAULT.Svc.Cluster.LOCAL. A 10.96.0.7"}},
		{name: "a service of one family has no address of the other, but exists", ask: "v4.default" + zone, qtype: dns.TypeAAAA},
		{name: "a service has no MX, but exists", ask: "web.default" + zone, qtype: dns.TypeMX},
		{name: "an unknown service does not exist", ask: "wob.default" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "an unknown namespace does not exist", ask: "web.prod" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "a name that the search list made does not exist", ask: "www.example.com.default" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "below a service with an address there are no hosts", ask: "pg-0.web.default" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},

		{name: "a named port has a service record", ask: "_http._tcp.web.default" + zone, qtype: dns.TypeSRV, want: []string{"_http._tcp.web.default" + zone + " SRV 0 100 80 web.default" + zone}},
		{name: "a port's protocol counts", ask: "_http._udp.web.default" + zone, qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "a UDP port has its own", ask: "_dns._udp.web.default" + zone, qtype: dns.TypeSRV, want: []string{"_dns._udp.web.default" + zone + " SRV 0 100 53 web.default" + zone}},
		{name: "a port without a name has none", ask: "_._tcp.v4.default" + zone, qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "a service without named ports has no protocols", ask: "_tcp.v4.default" + zone, qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "a protocol is the parent of its ports", ask: "_tcp.web.default" + zone, qtype: dns.TypeSRV},
		{name: "a service record's name has no address", ask: "_http._tcp.web.default" + zone, qtype: dns.TypeA},
		{name: "a port has nothing below", ask: "x._http._tcp.web.default" + zone, qtype: dns.TypeSRV, rcode: dns.RcodeNameError},

		{name: "a headless service has its endpoints' addresses", ask: "pg.db" + zone, qtype: dns.TypeA, want: []string{"pg.db" + zone + " A 10.244.1.5", "pg.db" + zone + " A 10.244.2.9"}},
		{name: "of both families", ask: "pg.db" + zone, qtype: dns.TypeAAAA, want: []string{"pg.db" + zone + " AAAA fd00:10:244::5"}},
		{name: "an endpoint with a hostname has a name", ask: "pg-0.pg.db" + zone, qtype: dns.TypeA, want: []string{"pg-0.pg.db" + zone + " A 10.244.1.5"}},
		{name: "an endpoint without one has its address for a name", ask: "10-244-2-9.pg.db" + zone, qtype: dns.TypeA, want: []string{"10-244-2-9.pg.db" + zone + " A 10.244.2.9"}},
		{name: "an endpoint of one family has none of the other", ask: "10-244-2-9.pg.db" + zone, qtype: dns.TypeAAAA},
		{name: "an unknown hostname does not exist", ask: "pg-7.pg.db" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "a headless service's ports are the endpoints' own, each once", ask: "_sql._tcp.pg.db" + zone, qtype: dns.TypeSRV, want: []string{
			"_sql._tcp.pg.db" + zone + " SRV 0 100 5432 pg-0.pg.db" + zone, "_sql._tcp.pg.db" + zone + " SRV 0 100 6432 10-244-2-9.pg.db" + zone,
		}},
		{name: "a headless service without endpoints does not exist", ask: "empty.db" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},

		{name: "an external name is an alias", ask: "out.db" + zone, qtype: dns.TypeCNAME, want: []string{"out.db" + zone + " CNAME www.example.com."}},
		{name: "an alias into the zone is followed", ask: "in.db" + zone, qtype: dns.TypeA, want: []string{
			"in.db" + zone + " CNAME web.default" + zone, "web.default" + zone + " A 10.96.0.7",
		}},
		{name: "aliases in a circle are a failure", ask: "ring.db" + zone, qtype: dns.TypeA, rcode: dns.RcodeServerFailure},
		{name: "below an external name is nothing", ask: "x.out.db" + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},

		{name: "a service's address has its name", ask: "7.0.96.10.in-addr.arpa.", qtype: dns.TypePTR, want: []string{"7.0.96.10.in-addr.arpa. PTR web.default" + zone}},
		{name: "an IPv6 one too", ask: reverse("fd00:10:96::7"), qtype: dns.TypePTR, want: []string{reverse("fd00:10:96::7") + " PTR web.default" + zone}},
		{name: "a headless endpoint's address has its host's", ask: "5.1.244.10.in-addr.arpa.", qtype: dns.TypePTR, want: []string{"5.1.244.10.in-addr.arpa. PTR pg-0.pg.db" + zone}},
		{name: "another address of the cluster has none", ask: "6.1.244.10.in-addr.arpa.", qtype: dns.TypePTR, rcode: dns.RcodeNameError},
		{name: "an address has no address", ask: "7.0.96.10.in-addr.arpa.", qtype: dns.TypeA},

		{name: "the schema has a version", ask: "dns-version.cluster.local.", qtype: dns.TypeTXT, want: []string{`dns-version.cluster.local. TXT "1.1.0"`}},
		{name: "and no address", ask: "dns-version.cluster.local.", qtype: dns.TypeA},
		{name: "the zone has a start of authority", ask: "cluster.local.", qtype: dns.TypeSOA, want: []string{"cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"}},
		{name: "the zone has a name server", ask: "cluster.local.", qtype: dns.TypeNS, want: []string{"cluster.local. NS ns.dns.cluster.local."}},
		{name: "the zone has no address", ask: "cluster.local.", qtype: dns.TypeA},
		{name: "svc is a parent", ask: "svc.cluster.local.", qtype: dns.TypeA},
		{name: "a namespace is a parent", ask: "default.svc.cluster.local.", qtype: dns.TypeA},
		{name: "a namespace without services is none", ask: "prod.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "other names of the zone do not exist", ask: "a.b.pod.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "an escaped dot parts no labels", ask: `web\.default` + zone, qtype: dns.TypeA, rcode: dns.RcodeNameError},

		{name: "other names are refused without resolvers", ask: "www.example.com.", qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: "other addresses too", ask: "1.2.0.192.in-addr.arpa.", qtype: dns.TypePTR, rcode: dns.RcodeRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ask(t, newTestServer(t, nil), new(dns.Msg).SetQuestion(c.ask, c.qtype), true)
			var got []string
			for _, rr := range r.Answer {
				got = append(got, rest(rr))
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if r.Rcode != c.rcode || !slices.Equal(got, c.want) {
				t.Fatalf("got %s %q, want %s %q", dns.RcodeToString[r.Rcode], got, dns.RcodeToString[c.rcode], c.want)
			}
			negative := len(r.Answer) == 0 && (r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError)
			if hasSOA := len(r.Ns) == 1 && r.Ns[0].Header().Rrtype == dns.TypeSOA; negative != hasSOA {
				t.Errorf("negative %v, with a start of authority %v", negative, hasSOA)
			}
		})
	}
}

func reverse(a string) string {
	name, err := dns.ReverseAddr(a)
	if err != nil {
		panic(err)
	}
	return name
}

func TestServiceRecordsBringTheAddresses(t *testing.T) {
	r := ask(t, newTestServer(t, nil), new(dns.Msg).SetQuestion("_sql._tcp.pg.db.svc.cluster.local.", dns.TypeSRV), true)
	var got []string
	for _, rr := range r.Extra {
		got = append(got, rest(rr))
	}
	slices.Sort(got)
	want := []string{
		"10-244-2-9.pg.db.svc.cluster.local. A 10.244.2.9",
		"pg-0.pg.db.svc.cluster.local. A 10.244.1.5",
		"pg-0.pg.db.svc.cluster.local. AAAA fd00:10:244::5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEndpointsComeInAnyOrder(t *testing.T) {
	s := newTestServer(t, nil)
	first := map[string]int{}
	for range 200 {
		r := ask(t, s, new(dns.Msg).SetQuestion("pg.db.svc.cluster.local.", dns.TypeA), false)
		first[rest(r.Answer[0])]++
	}
	if len(first) != 2 { // each is first with probability 1/2: one alone 200 times, 2^-199
		t.Errorf("first of two endpoints in 200 answers: %v", first)
	}
}

func TestHostnamesOfAddressesAreLabels(t *testing.T) {
	for _, a := range []string{"192.0.2.1", "2001:db8::", "2001:db8::1", "fd00::ffff:1"} {
		h := HostnameOf(addr(a))
		if len(h) > 63 || strings.ContainsAny(h, ".:") || strings.HasPrefix(h, "-") || strings.HasSuffix(h, "-") {
			t.Errorf("%s: %q is no label", a, h)
		}
	}
}

func TestReverseNamesThatAreNone(t *testing.T) {
	for _, name := range []string{
		"in-addr.arpa.", "1.in-addr.arpa.", "1.2.3.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa.", "256.2.3.4.in-addr.arpa.", "01.2.3.4.in-addr.arpa.",
		"ip6.arpa.", "1.0.ip6.arpa.", strings.Repeat("0.", 31) + "g.ip6.arpa.", strings.Repeat("00", 31) + "0.ip6.arpa.",
		"1.0.2.0.0.0.0.c.f.f.f.f." + strings.Repeat("0.", 20) + "ip6.arpa.", // ::ffff:192.0.2.1
	} {
		if a, ok := addrOfReverse(name); ok {
			t.Errorf("%s is taken for the name of %v", name, a)
		}
	}
}
