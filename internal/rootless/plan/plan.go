// Package plan says what the network of one namespace is to be like. Who starts the
// namespace decides it; what runs inside, and the dataplane outside, are told.
package plan

import (
	"fmt"
	"net/netip"

	"vswitch/vswitch/frame"
)

// Plan is the whole of it. It travels as JSON.
type Plan struct {
	// Interface is the name of the TAP device inside.
	Interface string `json:"interface"`
	MTUBytes  int    `json:"mtu"`
	// Queues of the device: one a worker of the dataplane.
	Queues int       `json:"queues"`
	MAC    frame.MAC `json:"mac"`
	Nets   []Net     `json:"nets"` // one a family at most
	// NoDNS leaves names to others: nothing answers at Net.DNS.
	NoDNS bool `json:"noDNS,omitempty"`
	// HostLoopback lets the namespace reach the host's own loopback at Net.Router.
	HostLoopback bool `json:"hostLoopback,omitempty"`
}

// Net is one family's part: three addresses of a prefix, the same ones that
// slirp4netns takes, since there is software that expects them.
type Net struct {
	Prefix netip.Prefix `json:"prefix"`
	Router netip.Addr   `json:"router"` // the gateway: network address + 2
	DNS    netip.Addr   `json:"dns"`    // + 3
	Addr   netip.Addr   `json:"addr"`   // the interface's: + 100, in IPv6 + 0x100
}

// The prefixes if none is given: slirp4netns's, and in IPv6 one that no network of a
// host is likely to have (RFC 4193), as fd00::/64 is.
var (
	DefaultIPv4 = netip.MustParsePrefix("10.0.2.0/24")
	DefaultIPv6 = netip.MustParsePrefix("fd76:7377:2::/64")
)

const (
	MinMTUBytes = 1280  // IPv6's least (RFC 8200 section 5)
	MaxMTUBytes = 65521 // what slirp4netns takes: a frame of 65,535 bytes
)

// NetOf lays out a prefix.
func NetOf(p netip.Prefix) (Net, error) {
	largest := 25
	last := byte(100)
	if p.Addr().Is6() {
		largest, last = 118, 0
	}
	if !p.IsValid() || p.Bits() > largest || p.Addr().Is4In6() {
		return Net{}, fmt.Errorf("%v: want a network of /%d or larger", p, largest)
	}
	p = p.Masked()
	at := func(n byte) netip.Addr {
		b := p.Addr().AsSlice()
		b[len(b)-1] += n
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	n := Net{Prefix: p, Router: at(2), DNS: at(3), Addr: at(last)}
	if last == 0 { // fd00::100
		b := p.Addr().As16()
		b[14]++
		n.Addr = netip.AddrFrom16(b)
	}
	if r := n.Router; !r.IsGlobalUnicast() || r.IsLoopback() {
		return Net{}, fmt.Errorf("%v: want addresses that hosts may have", p)
	}
	return n, nil
}

// NetsOf lays out prefixes, one a family at most.
func NetsOf(prefixes []netip.Prefix) ([]Net, error) {
	var nets []Net
	for _, p := range prefixes {
		n, err := NetOf(p)
		if err != nil {
			return nil, err
		}
		for _, o := range nets {
			if o.Addr.Is4() == n.Addr.Is4() {
				return nil, fmt.Errorf("%v and %v: want one network of each family at most", o.Prefix, n.Prefix)
			}
		}
		nets = append(nets, n)
	}
	if len(nets) == 0 {
		return nil, fmt.Errorf("want a network")
	}
	return nets, nil
}

// Check refuses what can't work.
func (p *Plan) Check() error {
	switch {
	case p.MTUBytes < MinMTUBytes || p.MTUBytes > MaxMTUBytes:
		return fmt.Errorf("MTU %d: want %d to %d", p.MTUBytes, MinMTUBytes, MaxMTUBytes)
	case p.MAC.IsZero() || p.MAC.IsMulticast():
		return fmt.Errorf("MAC %v: want a unicast address", p.MAC)
	case p.Queues < 1 || p.Queues > 64:
		return fmt.Errorf("%d workers: want 1 to 64", p.Queues)
	case len(p.Nets) == 0:
		return fmt.Errorf("want a network")
	}
	return nil
}

// Of takes one address of each net.
func (p *Plan) Of(f func(Net) netip.Addr) []netip.Addr {
	var all []netip.Addr
	for _, n := range p.Nets {
		all = append(all, f(n))
	}
	return all
}

// What Of is asked for.
func Addr(n Net) netip.Addr   { return n.Addr }
func Router(n Net) netip.Addr { return n.Router }
func DNS(n Net) netip.Addr    { return n.DNS }
