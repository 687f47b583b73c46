package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// testZone has one service of each kind, by hand.
type testZone map[string]*Service

func (z testZone) Service(namespace, name string) *Service { return z[namespace+"/"+name] }

func (z testZone) HasNamespace(ns string) bool {
	for _, s := range z {
		if s.Namespace == ns {
			return true
		}
	}
	return false
}

func (z testZone) Behind(a netip.Addr) []Name {
	var out []Name
	for _, s := range z {
		for _, own := range s.Addrs {
			if own == a {
				out = append(out, Name{Service: s})
			}
		}
		for _, e := range s.Endpoints {
			if e.Addr == a {
				out = append(out, Name{s, e.Hostname})
			}
		}
	}
	return out
}

func newTestZone() testZone {
	z := testZone{}
	add := func(s *Service) { z[s.Namespace+"/"+s.Name] = s }
	add(&Service{
		Namespace: "default", Name: "web", Addrs: []netip.Addr{addr("10.96.0.7"), addr("fd00:10:96::7")},
		Ports: []Port{{"http", "tcp", 80}, {"dns", "udp", 53}, {"", "tcp", 9}},
	})
	add(&Service{Namespace: "default", Name: "v4", Addrs: []netip.Addr{addr("10.96.0.8")}, Ports: []Port{{"", "tcp", 80}}})
	add(&Service{
		Namespace: "db", Name: "pg", Headless: true, Endpoints: []Endpoint{
			{addr("10.244.1.5"), "pg-0", []Port{{"sql", "tcp", 5432}}},
			{addr("fd00:10:244::5"), "pg-0", []Port{{"sql", "tcp", 5432}}},
			{addr("10.244.2.9"), HostnameOf(addr("10.244.2.9")), []Port{{"sql", "tcp", 6432}}},
		},
	})
	add(&Service{Namespace: "db", Name: "empty", Headless: true})
	add(&Service{Namespace: "db", Name: "out", ExternalName: "www.example.com"})
	add(&Service{Namespace: "db", Name: "in", ExternalName: "web.default.svc.cluster.local"})
	add(&Service{Namespace: "db", Name: "ring", ExternalName: "gnir.db.svc.cluster.local"})
	add(&Service{Namespace: "db", Name: "gnir", ExternalName: "ring.db.svc.cluster.local"})
	return z
}

func newTestServer(t testing.TB, f *Forwarder) *Server {
	t.Helper()
	s, err := New(Config{
		Domain: "cluster.local", Zone: newTestZone(), Forward: f,
		Local: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var pod = addr("10.244.0.2")

// ask sends a message and reads the answer.
func ask(t testing.TB, s *Server, q *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	query, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	answer := s.ServeDNS(t.Context(), query, pod, tcp)
	if answer == nil {
		t.Fatalf("no answer to\n%v", q)
	}
	var r dns.Msg
	if err := r.Unpack(answer); err != nil {
		t.Fatalf("answer can't be read: %v", err)
	}
	if r.Id != q.Id || !r.Response || r.Opcode != q.Opcode {
		t.Fatalf("answer\n%v\ndoes not belong to\n%v", &r, q)
	}
	return &r
}
