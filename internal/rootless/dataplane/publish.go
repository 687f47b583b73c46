package dataplane

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"vswitch/internal/wire"
)

// Publish says which ports of the host lead to the namespace.
type Publish struct {
	// Auto publishes what listens inside, at its own port, as long as it does.
	Auto bool `json:"auto,omitempty"`
	// Only and Except bound Auto. Only empty: every port, but for UDP sockets with
	// a port of the range that the kernel gives to clients.
	Only   []PortRange `json:"only,omitempty"`
	Except []PortRange `json:"except,omitempty"`
	// At are the host's addresses at which Auto opens ports; none: all of them,
	// loopback included.
	At []netip.Addr `json:"at,omitempty"`
	// Ports are open from start to end.
	Ports []Port `json:"ports,omitempty"`
}

// Port is one port of the host that leads to one of the namespace.
type Port struct {
	Host   netip.Addr `json:"host,omitzero"` // the zero value: all of the host's, loopback included
	Port   uint16     `json:"port"`
	Inside uint16     `json:"inside"`
	UDP    bool       `json:"udp,omitempty"`
}

// PortRange is ports First to Last of one protocol or both.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
	TCP   bool   `json:"tcp,omitempty"`
	UDP   bool   `json:"udp,omitempty"`
}

func (r PortRange) has(port uint16, udp bool) bool {
	return r.First <= port && port <= r.Last && (udp && r.UDP || !udp && r.TCP)
}

// ParsePublish reads the values of --publish: "auto", "none" and
// [ADDR:]PORT[:PORT][/PROTOCOL], where a port may be a range.
func ParsePublish(values []string) (Publish, error) {
	var p Publish
	for _, v := range values {
		switch v {
		case "auto":
			p.Auto = true
			continue
		case "none":
			if len(values) > 1 {
				return p, fmt.Errorf("%s: says that there is nothing else, and there is", v)
			}
			continue
		}
		ports, err := parsePorts(v)
		if err != nil {
			return p, fmt.Errorf("%s: %w; want auto, none, or [ADDR:]PORT[:PORT][/tcp|udp]", v, err)
		}
		p.Ports = append(p.Ports, ports...)
	}
	return p, nil
}

func parsePorts(v string) ([]Port, error) {
	text, protocol, _ := strings.Cut(v, "/")
	tcp, udp, err := parseProtocol(protocol)
	if err != nil {
		return nil, err
	}
	udp = udp && protocol != "" // without a protocol: TCP, as everybody has it
	addr, text, err := cutAddr(text)
	if err != nil {
		return nil, err
	}
	outer, inner, mapped := strings.Cut(text, ":")
	if !mapped {
		inner = outer
	}
	first, last, err := parseRange(outer)
	if err != nil {
		return nil, err
	}
	firstIn, lastIn, err := parseRange(inner)
	if err != nil {
		return nil, err
	}
	if last-first != lastIn-firstIn {
		return nil, fmt.Errorf("%s and %s differ in length", outer, inner)
	}
	var ports []Port
	for i := 0; i <= int(last-first); i++ {
		p := Port{Host: addr, Port: first + uint16(i), Inside: firstIn + uint16(i)}
		if tcp {
			ports = append(ports, p)
		}
		if udp {
			p.UDP = true
			ports = append(ports, p)
		}
	}
	return ports, nil
}

// cutAddr takes the address from ADDR:REST; IPv6 addresses stand in brackets.
func cutAddr(text string) (netip.Addr, string, error) {
	if rest, ok := strings.CutPrefix(text, "["); ok {
		addr, rest, ok := strings.Cut(rest, "]:")
		a, err := netip.ParseAddr(addr)
		if !ok || err != nil || !a.Is6() {
			return a, "", fmt.Errorf("%q is no IPv6 address in brackets and a port", text)
		}
		return a, rest, nil
	}
	addr, rest, ok := strings.Cut(text, ":")
	if !ok || !strings.Contains(addr, ".") {
		return netip.Addr{}, text, nil
	}
	a, err := netip.ParseAddr(addr)
	return a, rest, err
}

// ParseRanges reads PORT[-PORT][/PROTOCOL]; without a protocol: both.
func ParseRanges(values []string) ([]PortRange, error) {
	var ranges []PortRange
	for _, v := range values {
		text, protocol, _ := strings.Cut(v, "/")
		tcp, udp, err := parseProtocol(protocol)
		if err == nil {
			var first, last uint16
			if first, last, err = parseRange(text); err == nil {
				ranges = append(ranges, PortRange{first, last, tcp, udp})
				continue
			}
		}
		return nil, fmt.Errorf("%s: %w; want PORT[-PORT][/tcp|udp]", v, err)
	}
	return ranges, nil
}

func parseProtocol(s string) (tcp, udp bool, err error) {
	switch s {
	case "":
		return true, true, nil
	case "tcp":
		return true, false, nil
	case "udp":
		return false, true, nil
	}
	return false, false, fmt.Errorf("protocol %q", s)
}

func parseRange(s string) (first, last uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	if first, err = parsePort(a); err == nil {
		last, err = parsePort(b)
	}
	if err == nil && last < first {
		err = fmt.Errorf("%s ends before it begins", s)
	}
	return first, last, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want 1 to 65535", s)
	}
	return uint16(n), nil
}

func protocolOf(udp bool) uint8 {
	if udp {
		return wire.ProtoUDP
	}
	return wire.ProtoTCP
}
