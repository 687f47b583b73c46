package dns

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/miekg/dns"
)

const (
	// MaxUDPBytes bounds an answer by UDP: what IPv6's smallest MTU carries without
	// fragments, 1,280 less the headers, as DNS Flag Day 2020 recommends.
	MaxUDPBytes = 1280 - 40 - 8
	// maxAliases bounds a chain of ExternalName services that lead to each other.
	maxAliases = 8
)

// Config is what a server is built from.
type Config struct {
	// Domain is the cluster's, such as cluster.local.
	Domain string
	// Local are the ranges of pods and services: names of their addresses are
	// asked of nobody else.
	Local []netip.Prefix
	Zone  Zone
	// Forward answers for all other names. Nil: they are refused.
	Forward *Forwarder
}

// Server answers queries. Its methods may be called from any goroutine.
type Server struct {
	cluster cluster
	forward *Forwarder

	queries, own, malformed atomic.Uint64
}

// New makes a server. The error is about the domain.
func New(cfg Config) (*Server, error) {
	if n, ok := dns.IsDomainName(cfg.Domain); !ok || n == 0 {
		return nil, fmt.Errorf("dns: %q is no domain name; want one such as cluster.local", cfg.Domain)
	}
	return &Server{
		cluster: cluster{domain: dns.CanonicalName(cfg.Domain), local: cfg.Local, zone: cfg.Zone},
		forward: cfg.Forward,
	}, nil
}

// Stats are counters since New.
type Stats struct {
	Queries   uint64 // all
	Own       uint64 // of those, about the cluster's names
	Malformed uint64 // could not be read, or are no questions
	Forwarder ForwarderStats
}

// Stats reads the counters, each by itself.
func (s *Server) Stats() Stats {
	st := Stats{Queries: s.queries.Load(), Own: s.own.Load(), Malformed: s.malformed.Load()}
	if s.forward != nil {
		st.Forwarder = s.forward.Stats()
	}
	return st
}

// ServeDNS answers one message from a pod, nil: not at all. It returns when ctx
// ends; a question about the cluster takes microseconds, another as long as the
// resolvers need, within forwardTimeout. Over UDP an answer has MaxUDPBytes at most.
func (s *Server) ServeDNS(ctx context.Context, query []byte, pod netip.Addr, tcp bool) []byte {
	s.queries.Add(1)
	var q dns.Msg
	if err := q.Unpack(query); err != nil {
		s.malformed.Add(1)
		return formatError(query)
	}
	if q.Response {
		s.malformed.Add(1)
		return nil // an answer to an answer would go on for ever
	}
	r := s.answer(ctx, &q, pod)
	return pack(r, &q, tcp)
}

// formatError answers what can't be read, if so much as an identifier is there.
func formatError(query []byte) []byte {
	const headerBytes, responseBit = 12, 0x80
	if len(query) < headerBytes || query[2]&responseBit != 0 {
		return nil
	}
	r := dns.Msg{MsgHdr: dns.MsgHdr{
		Id: uint16(query[0])<<8 | uint16(query[1]), Response: true, Opcode: int(query[2] >> 3 & 0xf), Rcode: dns.RcodeFormatError,
	}}
	out, err := r.Pack()
	if err != nil {
		return nil
	}
	return out
}

// answer makes the reply, without regard to its size.
func (s *Server) answer(ctx context.Context, q *dns.Msg, pod netip.Addr) *dns.Msg {
	r := new(dns.Msg)
	if q.Opcode != dns.OpcodeQuery {
		return r.SetRcode(q, dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		s.malformed.Add(1)
		r.SetReply(q)
		r.Rcode = dns.RcodeFormatError
		return r
	}
	r.SetReply(q)
	r.RecursionAvailable = s.forward != nil
	question := q.Question[0]
	switch opt := q.IsEdns0(); {
	case opt != nil && opt.Version() != 0:
		r.Rcode = dns.RcodeBadVers // RFC 6891 section 6.1.3
		return r
	case question.Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
		return r
	}
	switch question.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		r.Rcode = dns.RcodeRefused
		return r
	case dns.TypeANY:
		// RFC 8482 section 4.2: whoever asks for all gets one that says why.
		r.Answer = []dns.RR{&dns.HINFO{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: 3600}, Cpu: "RFC8482",
		}}
		return r
	case dns.TypeNone, dns.TypeOPT, dns.TypeTKEY, dns.TypeTSIG, dns.TypeMAILA, dns.TypeMAILB:
		r.Rcode = dns.RcodeFormatError // no types that records have
		return r
	}
	s.resolve(ctx, r, q, pod)
	return r
}

// resolve fills in r's answer, by way of as many names as it takes.
func (s *Server) resolve(ctx context.Context, r, q *dns.Msg, pod netip.Addr) {
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	for range maxAliases {
		if !s.cluster.owns(dns.CanonicalName(name)) {
			s.resolveOutside(ctx, r, q, name, pod)
			return
		}
		if name == q.Question[0].Name {
			s.own.Add(1)
			r.Authoritative = true // says it of the first name (RFC 1035 section 4.1.1)
		}
		f := s.cluster.lookup(name, qtype)
		r.Answer = append(r.Answer, f.answer...)
		r.Extra = append(r.Extra, f.extra...)
		switch {
		case !f.exists:
			r.Rcode = dns.RcodeNameError
			r.Ns = append(r.Ns, s.cluster.soa())
			return
		case f.alias != "" && qtype != dns.TypeCNAME:
			name = f.alias
		case len(f.answer) == 0:
			r.Ns = append(r.Ns, s.cluster.soa())
			return
		default:
			return
		}
	}
	r.Answer, r.Rcode = nil, dns.RcodeServerFailure // they lead in a circle
}

// resolveOutside lets the node's resolvers say what name leads to.
func (s *Server) resolveOutside(ctx context.Context, r, q *dns.Msg, name string, pod netip.Addr) {
	if s.forward == nil || !q.RecursionDesired {
		if len(r.Answer) == 0 { // else: the alias alone answers what was asked of this zone
			r.Rcode = dns.RcodeRefused
		}
		return
	}
	opt := q.IsEdns0()
	do := opt != nil && opt.Do()
	got := s.forward.Ask(ctx, pod, Question{
		Name: name, Type: q.Question[0].Qtype, DNSSECOK: do, CheckingDisabled: q.CheckingDisabled,
	})
	r.Rcode = got.Rcode
	r.Answer = append(r.Answer, got.Answer...)
	r.Ns = append(r.Ns, got.Ns...)
	r.Extra = append(r.Extra, got.Extra...)
	// RFC 6840 section 5.8: only for who would know what it means.
	r.AuthenticatedData = got.AuthenticatedData && (do || q.AuthenticatedData) && !r.Authoritative
	r.CheckingDisabled = q.CheckingDisabled
}

// pack encodes r so that it fits where q came from.
func pack(r, q *dns.Msg, tcp bool) []byte {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), MaxUDPBytes)
		r.SetEdns0(MaxUDPBytes, opt.Do())
	} else if r.Rcode > 0xf {
		r.Rcode = dns.RcodeServerFailure // the rest of the code would not be seen
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	r.Truncate(size)
	out, err := r.Pack()
	if err == nil {
		return out
	}
	// An upstream's record that can be read and not written; none is known.
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	if out, err = failed.Pack(); err != nil {
		return nil
	}
	return out
}
