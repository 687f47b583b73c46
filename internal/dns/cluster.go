package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// SchemaVersion is that of the specification which the zone follows (section 2.2).
	SchemaVersion = "1.1.0"
	// recordTTLSecs is how long an answer about a service may be kept. Endpoints come
	// and go; asking again costs a pod one round trip within its node.
	recordTTLSecs = 5
	// Service records are all alike (RFC 2782).
	srvPriority, srvWeight = 0, 100
)

// cluster answers for the zone of the cluster.
type cluster struct {
	domain string         // lower case, with the last dot
	local  []netip.Prefix // addresses of the cluster: nobody else knows names of theirs
	zone   Zone
}

// found is what the zone says to one question.
type found struct {
	exists bool     // the name does, if only as the parent of others (RFC 8020)
	answer []dns.RR // none: there is no record of this type
	extra  []dns.RR
	alias  string // the name to go on with, if the answer is a CNAME
}

// owns reports whether the zone answers for a name, in lower case.
func (c *cluster) owns(name string) bool {
	if dns.IsSubDomain(c.domain, name) {
		return true
	}
	a, ok := addrOfReverse(name)
	return ok && (len(c.zone.Behind(a)) > 0 || slices.ContainsFunc(c.local, func(p netip.Prefix) bool { return p.Contains(a) }))
}

// lookup finds the records of a name that the zone owns. Owner names in the answer
// are as asked, in asked's letters.
func (c *cluster) lookup(asked string, qtype uint16) found {
	name := dns.CanonicalName(asked)
	if a, ok := addrOfReverse(name); ok {
		return c.reverse(asked, a, qtype)
	}
	labels := dns.SplitDomainName(name)
	labels = labels[:len(labels)-dns.CountLabel(c.domain)]
	switch n := len(labels); {
	case n == 0:
		return c.apex(asked, qtype)
	case n == 1 && labels[0] == "dns-version":
		f := found{exists: true}
		if qtype == dns.TypeTXT {
			f.answer = []dns.RR{&dns.TXT{Hdr: header(asked, dns.TypeTXT), Txt: []string{SchemaVersion}}}
		}
		return f
	case labels[n-1] != "svc":
		return found{}
	case n == 1:
		return found{exists: true}
	case n == 2:
		return found{exists: c.zone.HasNamespace(labels[0])}
	default:
		s := c.zone.Service(labels[n-2], labels[n-3])
		if s == nil {
			return found{}
		}
		return c.service(asked, s, labels[:n-3], qtype)
	}
}

func (c *cluster) apex(asked string, qtype uint16) found {
	f := found{exists: true}
	switch qtype {
	case dns.TypeSOA:
		f.answer = []dns.RR{c.soa()}
	case dns.TypeNS:
		f.answer = []dns.RR{&dns.NS{Hdr: header(asked, dns.TypeNS), Ns: "ns.dns." + c.domain}}
	}
	return f
}

// soa goes with every negative answer (RFC 2308 section 2).
func (c *cluster) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(c.domain, dns.TypeSOA), Ns: "ns.dns." + c.domain, Mbox: "hostmaster." + c.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: recordTTLSecs,
	}
}

// service answers for what is below a service's name, the name itself included.
func (c *cluster) service(asked string, s *Service, below []string, qtype uint16) found {
	switch {
	case s.ExternalName != "":
		if len(below) > 0 {
			return found{}
		}
		target := dns.Fqdn(s.ExternalName)
		return found{exists: true, alias: target, answer: []dns.RR{&dns.CNAME{Hdr: header(asked, dns.TypeCNAME), Target: target}}}
	case s.Headless && len(s.Endpoints) == 0:
		return found{} // specification, section 2.4.1
	case len(below) == 0 && s.Headless:
		var addrs []netip.Addr
		for _, e := range s.Endpoints {
			addrs = append(addrs, e.Addr)
		}
		return found{exists: true, answer: addresses(asked, qtype, addrs)}
	case len(below) == 0:
		return found{exists: true, answer: addresses(asked, qtype, s.Addrs)}
	case strings.HasPrefix(below[len(below)-1], "_"):
		return c.ports(asked, s, below, qtype)
	case len(below) == 1 && s.Headless:
		var addrs []netip.Addr
		for _, e := range s.Endpoints {
			if e.Hostname == below[0] {
				addrs = append(addrs, e.Addr)
			}
		}
		return found{exists: len(addrs) > 0, answer: addresses(asked, qtype, addrs)}
	}
	return found{}
}

// ports answers for _port._protocol and for its parent _protocol.
func (c *cluster) ports(asked string, s *Service, below []string, qtype uint16) found {
	if len(below) > 2 {
		return found{}
	}
	protocol := below[len(below)-1][1:]
	port := "" // any
	if len(below) == 2 {
		var ok bool
		if port, ok = strings.CutPrefix(below[0], "_"); !ok || port == "" {
			return found{}
		}
	}
	name := c.nameOf(Name{Service: s})
	var f found
	add := func(ports []Port, target string, addrs []netip.Addr) {
		for _, p := range ports {
			if p.Protocol != protocol || p.Name == "" || port != "" && p.Name != port {
				continue
			}
			f.exists = true
			if port == "" || qtype != dns.TypeSRV {
				continue
			}
			f.answer = append(f.answer, &dns.SRV{
				Hdr: header(asked, dns.TypeSRV), Priority: srvPriority, Weight: srvWeight, Port: p.Number, Target: target,
			})
			for _, a := range addrs {
				f.extra = append(f.extra, address(target, a))
			}
		}
	}
	if !s.Headless {
		add(s.Ports, name, s.Addrs)
		return f
	}
	for _, e := range s.Endpoints {
		add(e.Ports, e.Hostname+"."+name, []netip.Addr{e.Addr})
	}
	f.answer = uniqueSRV(f.answer) // a pod with addresses of both families is two endpoints
	shuffle(f.answer)
	return f
}

// uniqueSRV drops records of one port and target that came twice.
func uniqueSRV(rrs []dns.RR) []dns.RR {
	type key struct {
		target string
		port   uint16
	}
	seen := make(map[key]bool, len(rrs))
	return slices.DeleteFunc(rrs, func(rr dns.RR) bool {
		k := key{rr.(*dns.SRV).Target, rr.(*dns.SRV).Port}
		twice := seen[k]
		seen[k] = true
		return twice
	})
}

// reverse answers for an address.
func (c *cluster) reverse(asked string, a netip.Addr, qtype uint16) found {
	names := c.zone.Behind(a)
	f := found{exists: len(names) > 0}
	if qtype == dns.TypePTR {
		for _, n := range names {
			f.answer = append(f.answer, &dns.PTR{Hdr: header(asked, dns.TypePTR), Ptr: c.nameOf(n)})
		}
	}
	return f
}

func (c *cluster) nameOf(n Name) string {
	name := n.Service.Name + "." + n.Service.Namespace + ".svc." + c.domain
	if n.Hostname != "" {
		return n.Hostname + "." + name
	}
	return name
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: recordTTLSecs}
}

func address(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// addresses are the records of one of the two types, in any order: many clients
// take the first.
func addresses(name string, qtype uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		if qtype == dns.TypeA && a.Is4() || qtype == dns.TypeAAAA && a.Is6() {
			out = append(out, address(name, a))
		}
	}
	shuffle(out)
	return out
}

func shuffle(rrs []dns.RR) {
	rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
}

// addrOfReverse reads the name of an address, in lower case: d.c.b.a.in-addr.arpa.
// (RFC 1035 section 3.5) or 32 nibbles in ip6.arpa. (RFC 3596 section 2.5).
func addrOfReverse(name string) (netip.Addr, bool) {
	if text, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		octets := strings.Split(text, ".")
		if len(octets) != 4 {
			return netip.Addr{}, false
		}
		slices.Reverse(octets)
		a, err := netip.ParseAddr(strings.Join(octets, "."))
		return a, err == nil && a.Is4()
	}
	text, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(text) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		if i > 0 && text[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		nibble, err := strconv.ParseUint(text[2*i:2*i+1], 16, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(nibble) << (4 * (i % 2))
	}
	a := netip.AddrFrom16(b)
	return a, !a.Is4In6()
}
