package pcapfilter

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"vswitch/internal/wire"
)

// Bounds of what is compiled, so that the work of a match is bounded too.
const (
	maxTextBytes = 4096
	maxDepth     = 64
)

// Error says where a filter is wrong and what would be right.
type Error struct {
	Text string
	At   string // the word that is wrong; empty: the end
	Want string
}

func (e *Error) Error() string {
	if e.At == "" {
		return fmt.Sprintf("filter %q ends too soon: want %s", e.Text, e.Want)
	}
	return fmt.Sprintf("filter %q: %q: want %s", e.Text, e.At, e.Want)
}

// Compile reads a filter; the empty text matches all. Its errors are *Error.
func Compile(text string) (*Filter, error) {
	p := &parser{text: text, words: split(text)}
	if len(text) > maxTextBytes {
		return nil, &Error{Text: text[:40] + "...", At: text[:40], Want: fmt.Sprintf("at most %d bytes", maxTextBytes)}
	}
	if len(p.words) == 0 {
		return &Filter{}, nil
	}
	root, err := p.expression(0)
	if err == nil && p.peek() != "" {
		err = p.wrong(`"and" or "or"`)
	}
	if err != nil {
		return nil, err
	}
	return &Filter{root: root}, nil
}

// split separates words, parentheses and the signs that stand for words.
func split(text string) []string {
	return strings.Fields(strings.NewReplacer(
		"(", " ( ", ")", " ) ", "&&", " and ", "||", " or ", "!", " not ",
	).Replace(text))
}

type parser struct {
	text  string
	words []string
	at    int
	last  qualifiers // of the latest primitive with an address or number
}

// qualifiers are what stands before an address or number.
type qualifiers struct {
	protocol string
	dir      direction
	kind     string // host, net, port, portrange; empty: none
}

func (p *parser) peek() string {
	if p.at == len(p.words) {
		return ""
	}
	return p.words[p.at]
}

func (p *parser) next() string {
	w := p.peek()
	if w != "" {
		p.at++
	}
	return w
}

// accept takes the next words if they are these.
func (p *parser) accept(words ...string) bool {
	for i, w := range words {
		if p.at+i >= len(p.words) || p.words[p.at+i] != w {
			return false
		}
	}
	p.at += len(words)
	return true
}

func (p *parser) wrong(want string) error { return &Error{Text: p.text, At: p.peek(), Want: want} }

// wrongLast is wrong for the word just taken.
func (p *parser) wrongLast(word, want string) error {
	return &Error{Text: p.text, At: word, Want: want}
}

func (p *parser) expression(depth int) (*node, error) {
	left, err := p.term(depth)
	for err == nil {
		op := opAnd
		switch {
		case p.accept("and"):
		case p.accept("or"):
			op = opOr
		default:
			return left, nil
		}
		var right *node
		right, err = p.term(depth)
		left = &node{op: op, left: left, right: right}
	}
	return nil, err
}

func (p *parser) term(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, p.wrong(fmt.Sprintf("at most %d levels", maxDepth))
	}
	switch {
	case p.accept("not"):
		n, err := p.term(depth + 1)
		return &node{op: opNot, right: n}, err
	case p.accept("("):
		n, err := p.expression(depth + 1)
		if err == nil && !p.accept(")") {
			err = p.wrong(`")"`)
		}
		return n, err
	}
	return p.primitive()
}

var protocols = map[string]uint8{
	"tcp": wire.ProtoTCP, "udp": wire.ProtoUDP, "sctp": wire.ProtoSCTP, "icmp": wire.ProtoICMP, "icmp6": wire.ProtoICMPv6,
}

var etherTypes = map[string]uint16{"ip": wire.TypeIPv4, "ip6": wire.TypeIPv6, "arp": wire.TypeARP}

const primitives = `a protocol such as tcp or ip6, "host ADDRESS", "net PREFIX", "port NUMBER", "portrange FIRST-LAST", "ether host MAC", "less BYTES" or "greater BYTES"`

func (p *parser) primitive() (*node, error) {
	switch {
	case p.accept("less"):
		n, err := p.number(0, 1<<20)
		return &node{op: opLength, high: n}, err
	case p.accept("greater"):
		n, err := p.number(0, 1<<20)
		return &node{op: opLength, low: n, high: 1 << 20}, err
	case p.accept("ether"):
		return p.ether()
	case p.accept("proto"):
		return p.protocol(0)
	}
	q := qualifiers{}
	word := p.peek()
	if _, ok := protocols[word]; ok || etherTypes[word] != 0 {
		q.protocol = p.next()
	}
	if q.protocol == "ip" && p.accept("proto") {
		return p.protocol(4)
	}
	if q.protocol == "ip6" && p.accept("proto") {
		return p.protocol(6)
	}
	q.dir = p.direction()
	switch w := p.peek(); w {
	case "host", "net", "port", "portrange":
		q.kind = p.next()
	case "", "and", "or", ")":
		if q.protocol != "" && q.dir == either {
			return bare(q.protocol), nil
		}
		return nil, p.wrong(primitives)
	default:
		switch {
		case isAddress(w) && (q != qualifiers{}):
			q.kind = "host"
		case isAddress(w) && (p.last.kind == "host" || p.last.kind == "net"):
			q = p.last
			q.kind = "host"
			if strings.Contains(w, "/") {
				q.kind = "net"
			}
		case isAddress(w):
			q.kind = "host"
		case (q == qualifiers{}) && p.last.kind != "" && w[0] >= '0' && w[0] <= '9':
			q = p.last
		default:
			return nil, p.wrong(primitives)
		}
	}
	p.last = q
	return p.qualified(q)
}

func isAddress(w string) bool {
	_, err := netip.ParseAddr(w)
	if err != nil {
		_, err = netip.ParsePrefix(w)
	}
	return err == nil
}

func bare(protocol string) *node {
	if t := etherTypes[protocol]; t != 0 {
		return &node{op: opEtherType, etherType: t}
	}
	return &node{op: opProtocol, protocol: protocols[protocol], version: versionOf(protocol)}
}

// versionOf is the IP version that a protocol belongs to: 0 for both.
func versionOf(protocol string) uint8 {
	switch protocol {
	case "icmp":
		return 4
	case "icmp6":
		return 6
	}
	return 0
}

func (p *parser) direction() direction {
	switch {
	case p.accept("src", "or", "dst"), p.accept("dst", "or", "src"):
		return either
	case p.accept("src", "and", "dst"), p.accept("dst", "and", "src"):
		return both
	case p.accept("src"):
		return source
	case p.accept("dst"):
		return destination
	}
	return either
}

// qualified reads the address or number that q stands before.
func (p *parser) qualified(q qualifiers) (*node, error) {
	switch q.kind {
	case "port", "portrange":
		return p.ports(q)
	}
	if _, transport := protocols[q.protocol]; transport {
		return nil, p.wrongLast(q.protocol, `ip, ip6 or arp before an address; or "`+q.protocol+` and host ADDRESS"`)
	}
	n := &node{op: opAddress, dir: q.dir, etherType: etherTypes[q.protocol]}
	word := p.next()
	var prefix netip.Prefix
	if q.kind == "net" {
		var err error
		prefix, err = netip.ParsePrefix(word)
		if err != nil {
			return nil, p.wrongLast(word, "a prefix such as 10.244.0.0/16")
		}
		if prefix != prefix.Masked() {
			return nil, p.wrongLast(word, prefix.Masked().String()+": no bit may be set beyond the prefix")
		}
	} else {
		a, err := netip.ParseAddr(word)
		if err != nil || a.Zone() != "" {
			return nil, p.wrongLast(word, "an IP address; names are not looked up")
		}
		prefix = netip.PrefixFrom(a, a.BitLen())
	}
	n.addr, n.bits = wire.AddrFrom(prefix.Addr()), prefix.Bits()
	if prefix.Addr().Is4() {
		n.bits += 96
		if n.etherType == wire.TypeIPv6 {
			return nil, p.wrongLast(word, "an IPv6 address after ip6")
		}
	} else if n.etherType == wire.TypeIPv4 || n.etherType == wire.TypeARP {
		return nil, p.wrongLast(word, "an IPv4 address after "+q.protocol)
	} else {
		n.etherType = wire.TypeIPv6 // ::/0 covers no IPv4 address
	}
	return n, nil
}

func (p *parser) ports(q qualifiers) (*node, error) {
	n := &node{op: opPort, dir: q.dir}
	switch q.protocol {
	case "":
	case "tcp", "udp", "sctp":
		n.protocol = protocols[q.protocol]
	default:
		return nil, p.wrongLast(q.protocol, "tcp, udp or sctp before a port")
	}
	if q.kind == "port" {
		port, err := p.number(0, 65535)
		n.low, n.high = port, port
		return n, err
	}
	word := p.next()
	first, last, _ := strings.Cut(word, "-")
	low, err1 := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || low > high {
		return nil, p.wrongLast(word, "FIRST-LAST, such as 8000-8080")
	}
	n.low, n.high = int(low), int(high)
	return n, nil
}

func (p *parser) number(low, high int) (int, error) {
	word := p.next()
	n, err := strconv.Atoi(word)
	if err != nil || n < low || n > high {
		return 0, p.wrongLast(word, fmt.Sprintf("a number, %d to %d", low, high))
	}
	return n, nil
}

// protocol reads what follows "ip proto", "ip6 proto" and "proto".
func (p *parser) protocol(version uint8) (*node, error) {
	n := &node{op: opProtocol, version: version}
	if known, ok := protocols[p.peek()]; ok {
		p.next()
		n.protocol = known
		return n, nil
	}
	number, err := p.number(0, 255)
	n.protocol = uint8(number)
	return n, err
}

func (p *parser) ether() (*node, error) {
	n := &node{op: opMAC, dir: p.direction()}
	p.accept("host")
	word := p.next()
	mac, err := net.ParseMAC(word)
	if err != nil || len(mac) != len(n.mac) {
		return nil, p.wrongLast(word, "a MAC address such as 02:00:00:00:00:01")
	}
	n.mac = [6]byte(mac)
	return n, nil
}
