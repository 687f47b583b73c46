package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func TestQueriesThatAreNone(t *testing.T) {
	s := newTestServer(t, nil)
	question := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		change(q)
		return q
	}
	for _, c := range []struct {
		name  string
		q     *dns.Msg
		rcode int
	}{
		{"an update is not implemented", question(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"no question", question(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		{"two questions", question(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
		{"a zone transfer is refused", question(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"another class is refused", question(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"a type that records don't have", question(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeTSIG }), dns.RcodeFormatError},
		{"an EDNS version that isn't", question(func(q *dns.Msg) { q.SetEdns0(1232, false).IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := ask(t, s, c.q, false); r.Rcode != c.rcode || len(r.Answer) != 0 {
				t.Errorf("got %v, want %s", r, dns.RcodeToString[c.rcode])
			}
		})
	}
	if r := ask(t, s, question(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeANY }), false); len(r.Answer) != 1 || r.Answer[0].Header().Rrtype != dns.TypeHINFO {
		t.Errorf("asked for any: got %v, want HINFO", r)
	}
}

func TestWhatGetsNoAnswer(t *testing.T) {
	s := newTestServer(t, nil)
	answer, err := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string][]byte{
		"nothing": nil, "half a header": make([]byte, 11), "an answer": answer,
		"an answer that can't be read": append(bytes.Clone(answer[:12]), 0xff),
	} {
		if got := s.ServeDNS(t.Context(), q, pod, false); got != nil {
			t.Errorf("%s: answered with %x", name, got)
		}
	}
}

func TestWhatCannotBeReadIsAFormatError(t *testing.T) {
	s := newTestServer(t, nil)
	q := append([]byte{0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xff)
	var r dns.Msg
	if err := r.Unpack(s.ServeDNS(t.Context(), q, pod, false)); err != nil || r.Id != 0x1234 || r.Rcode != dns.RcodeFormatError {
		t.Errorf("got %v, %v", &r, err)
	}
}

// bigZone has one headless service with n endpoints.
type bigZone struct {
	Zone
	service *Service
}

func (z bigZone) Service(_, _ string) *Service { return z.service }

func newBigServer(t *testing.T, n int) *Server {
	big := &Service{Namespace: "a", Name: "big", Headless: true}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
		big.Endpoints = append(big.Endpoints, Endpoint{Addr: a, Hostname: HostnameOf(a)})
	}
	s, err := New(Config{Domain: "cluster.local", Zone: bigZone{service: big}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnswersFit(t *testing.T) {
	const endpoints = 300
	s := newBigServer(t, endpoints)
	for _, c := range []struct {
		edns int // zero: none
		tcp  bool
		want int // bytes at most
	}{
		{0, false, 512}, {100, false, 512}, {512, false, 512}, {1000, false, 1000}, {1232, false, 1232}, {4096, false, 1232}, {65535, false, 1232},
		{0, true, 65535}, {512, true, 65535},
	} {
		t.Run(fmt.Sprintf("EDNS %d, TCP %v", c.edns, c.tcp), func(t *testing.T) {
			q := new(dns.Msg).SetQuestion("big.a.svc.cluster.local.", dns.TypeA)
			if c.edns != 0 {
				q.SetEdns0(uint16(c.edns), true)
			}
			query, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			answer := s.ServeDNS(t.Context(), query, pod, c.tcp)
			var r dns.Msg
			if err := r.Unpack(answer); err != nil {
				t.Fatal(err)
			}
			const record = 16 // an address with a compressed name
			if len(answer) > c.want || !c.tcp && len(answer) < c.want-record-16 {
				t.Errorf("%d bytes, want up to %d and nearly that", len(answer), c.want)
			}
			if r.Truncated == c.tcp || c.tcp && len(r.Answer) != endpoints {
				t.Errorf("%d of %d records, truncated: %v", len(r.Answer), endpoints, r.Truncated)
			}
			opt := r.IsEdns0()
			if (opt != nil) != (c.edns != 0) {
				t.Fatalf("EDNS asked with %d, answered with %v", c.edns, opt)
			}
			if opt != nil && (!opt.Do() || opt.UDPSize() != MaxUDPBytes) {
				t.Errorf("DO %v, size %d; want it as asked, and %d", opt.Do(), opt.UDPSize(), MaxUDPBytes)
			}
		})
	}
}

func TestADomainIsChecked(t *testing.T) {
	for _, d := range []string{"", "a..b", string(bytes.Repeat([]byte("x"), 64))} {
		if _, err := New(Config{Domain: d, Zone: testZone{}}); err == nil {
			t.Errorf("domain %q is accepted", d)
		}
	}
}

func FuzzServeDNS(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.web.default.svc.cluster.local.", "7.0.96.10.in-addr.arpa.", "www.example.com."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			q, err := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(4096, true).Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(q, false)
		}
	}
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, true) // a name that points to itself
	s := newTestServer(f, nil)
	f.Fuzz(func(t *testing.T, query []byte, tcp bool) {
		answer := s.ServeDNS(t.Context(), query, pod, tcp)
		if answer == nil {
			return
		}
		if !tcp && len(answer) > MaxUDPBytes {
			t.Errorf("%d bytes by UDP", len(answer))
		}
		var r dns.Msg
		if err := r.Unpack(answer); err != nil {
			t.Errorf("answer can't be read: %v", err)
		}
		if !r.Response || len(query) < 2 || answer[0] != query[0] || answer[1] != query[1] {
			t.Errorf("answer %x does not belong to %x", answer, query)
		}
		if again := s.ServeDNS(t.Context(), answer, pod, tcp); again != nil {
			t.Errorf("an answer is answered")
		}
	})
}

func BenchmarkServeDNS(b *testing.B) {
	s := newTestServer(b, nil)
	q, err := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.ServeDNS(b.Context(), q, pod, false)
	}
}
