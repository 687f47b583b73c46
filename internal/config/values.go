package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/confine"
	"vswitch/internal/dns"
)

// value adapts a typed field to pflag.Value. A Set that fails leaves the field
// as it was; its error says what would be right, since the caller has already
// named the setting and the text.
type value[T any] struct {
	dst    *T
	kind   string // shown in the help
	parse  func(string) (T, error)
	format func(T) string
}

func (v value[T]) Set(s string) error {
	x, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.dst = x
	return nil
}

func (v value[T]) String() string {
	if v.dst == nil || v.format == nil {
		return ""
	}
	return v.format(*v.dst)
}

func (v value[T]) Type() string { return v.kind }

// nodeName is what Kubernetes allows (RFC 1123 section 2.1, lower case).
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func parseNode(s string) (string, error) {
	if len(s) > 253 || !nodeName.MatchString(s) {
		return "", errors.New("want a name of lower-case letters, digits, '-' and '.', 253 at most")
	}
	return s, nil
}

// zoneName is what Kubernetes allows as a label's value.
var zoneName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)

func parseZone(s string) (string, error) {
	if len(s) > 63 || !zoneName.MatchString(s) {
		return "", errors.New("want a name of letters, digits, '-', '_' and '.', 63 at most")
	}
	return s, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("want a port, 1 to 65535")
	}
	return uint16(n), nil
}

// autoPort asks for ports of the node's own choice.
const autoPort = "auto"

func parseUDPPort(s string) (uint16, error) {
	if s == autoPort {
		return 0, nil
	}
	port, err := parsePort(s)
	if err != nil {
		return 0, fmt.Errorf("%w, or %s", err, autoPort)
	}
	return port, nil
}

func formatUDPPort(n uint16) string {
	if n == 0 {
		return autoPort
	}
	return strconv.Itoa(int(n))
}

// parseLowPorts reads what moves every privileged port to one that is anybody's.
func parseLowPorts(s string) (int, error) {
	const low = 1024
	n, err := strconv.Atoi(s)
	if err != nil || n != 0 && (n < low || n > 65536-low) {
		return 0, fmt.Errorf("want 0, or %d to %d", low, 65536-low)
	}
	return n, nil
}

// perFamily reads a list of one or two, no two of one family.
func perFamily[T any](s, want string, parse func(string) (T, error), is4 func(T) bool) ([]T, error) {
	parts := strings.Split(s, ",")
	if len(parts) > 2 {
		return nil, fmt.Errorf("%d given; want %s", len(parts), want)
	}
	var out []T
	for _, p := range parts {
		x, err := parse(strings.TrimSpace(p))
		if err != nil {
			return nil, fmt.Errorf("%w; want %s", err, want)
		}
		out = append(out, x)
	}
	if len(out) == 2 && is4(out[0]) == is4(out[1]) {
		return nil, fmt.Errorf("two of one family; want %s", want)
	}
	return out, nil
}

func parseUnderlay(s string) ([]netip.Addr, error) {
	const want = "one address of this host, or an IPv4 and an IPv6 one: ADDR[,ADDR]"
	return perFamily(s, want, func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			return a, fmt.Errorf("%q is no address", s)
		case a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return a, fmt.Errorf("%v can't be reached by other nodes", a)
		}
		return a.Unmap(), nil
	}, netip.Addr.Is4)
}

func parsePrefixes(s string) ([]netip.Prefix, error) {
	const want = "one prefix, or an IPv4 and an IPv6 one: CIDR[,CIDR]"
	return perFamily(s, want, func(s string) (netip.Prefix, error) {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return p, fmt.Errorf("%q is no prefix", s)
		case p.Masked() != p:
			return p, fmt.Errorf("%v has bits behind its length set, %v has not", p, p.Masked())
		case p.Bits() == 0 || p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast():
			return p, fmt.Errorf("%v can't be pods' or services'", p)
		}
		return p, nil
	}, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

// storeFlag is --store: it says which of the three a Store is.
type storeFlag struct{ *Store }

const wantStore = "embedded, kubernetes, or etcd=URL[,URL...] with http or https URLs such as https://192.0.2.1:2379"

// Set implements pflag.Value.
func (f storeFlag) Set(s string) error {
	list, isEtcd := strings.CutPrefix(s, "etcd=")
	if !isEtcd && s != "embedded" && s != "kubernetes" {
		return errors.New("want " + wantStore)
	}
	var urls []string
	if isEtcd {
		urls = strings.Split(list, ",")
	}
	for _, u := range urls {
		if _, err := parseURL(u); err != nil {
			return fmt.Errorf("%q: want %s", u, wantStore)
		}
	}
	f.Kubernetes, f.URLs = s == "kubernetes", urls
	return nil
}

// Type implements pflag.Value.
func (storeFlag) Type() string { return "STORE" }

// parseURL reads http[s]://HOST:PORT.
func parseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !hostPortOK(u.Host) ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return "", errors.New("want http://HOST:PORT or https://HOST:PORT")
	}
	return s, nil
}

// parseListen is parseURL for an address to bind, where a name won't do.
func parseListen(s string) (string, error) {
	const want = "want http://ADDR:PORT or https://ADDR:PORT, ADDR one of this host's"
	if _, err := parseURL(s); err != nil {
		return "", errors.New(want)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New(want)
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		return "", errors.New(want)
	}
	return s, nil
}

func parseMTU(s string) (int, error) {
	if s == "auto" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < minMTUBytes || n > maxMTUBytes {
		return 0, fmt.Errorf("want auto, or %d to %d bytes", minMTUBytes, maxMTUBytes)
	}
	return n, nil
}

func formatMTU(n int) string {
	if n == 0 {
		return "auto"
	}
	return strconv.Itoa(n)
}

// parseDuration reads a time with its unit, from zero to high.
func parseDuration(high time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 || d > high {
			return 0, fmt.Errorf("want a time such as 30s, 0 to %v", high)
		}
		return d, nil
	}
}

func parseInt(low, high int, what string) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("want %s, %d to %d", what, low, high)
		}
		return n, nil
	}
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("want true or false")
}

func parseOffload(s string) (bool, error) {
	switch s {
	case "auto":
		return true, nil
	case "off":
		return false, nil
	}
	return false, errors.New("want auto or off")
}

func formatOffload(on bool) string {
	if on {
		return "auto"
	}
	return "off"
}

func parsePower(s string) (bool, error) {
	switch s {
	case "auto":
		return true, nil
	case "eco":
		return false, nil
	}
	return false, errors.New("want auto or eco")
}

func formatPower(polling bool) string {
	if polling {
		return "auto"
	}
	return "eco"
}

// parsePath takes any file name and makes it absolute, so that what is stored or
// handed to a child means the same there.
func parsePath(s string) (string, error) {
	if s == "" {
		return "", errors.New("want a path")
	}
	if strings.ContainsRune(s, 0) {
		return "", errors.New("want a path without NUL")
	}
	return filepath.Abs(s)
}

func same(s string) string { return s }

func join[T fmt.Stringer](xs []T) string {
	var out []string
	for _, x := range xs {
		out = append(out, x.String())
	}
	return strings.Join(out, ",")
}

// parseDNSAddrs makes of the empty string an empty list, which is not nil: none are
// wanted, where nil would be the default.
func parseDNSAddrs(s string) ([]netip.Addr, error) {
	if s == "" {
		return []netip.Addr{}, nil
	}
	const want = "one service address, or an IPv4 and an IPv6 one: ADDR[,ADDR]"
	return perFamily(s, want, func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return a, fmt.Errorf("%q is no address", s)
		}
		return a, nil
	}, netip.Addr.Is4)
}

func parseDomain(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 200 || !nodeName.MatchString(s) { // below it there must be room for names
		return "", errors.New("want a domain name of lower-case letters, digits, '-' and '.', such as cluster.local")
	}
	return s, nil
}

func parseResolvers(s string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range strings.Split(s, ",") {
		text = strings.TrimSpace(text)
		at, err := netip.ParseAddrPort(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil {
			at, err = netip.AddrPortFrom(a, dns.ResolverPort), nil
		}
		if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || at.Addr().IsMulticast() {
			return nil, fmt.Errorf("%q: want addresses of resolvers such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53", text)
		}
		out = append(out, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	return out, nil
}

func parseServed(s string) ([]netip.AddrPort, error) {
	if s == "off" {
		return nil, nil
	}
	var out []netip.AddrPort
	for _, text := range strings.Split(s, ",") {
		at, err := netip.ParseAddrPort(strings.TrimSpace(text))
		if err != nil || at.Port() == 0 {
			return nil, fmt.Errorf("%q: want off, or addresses of this host such as 127.0.0.1:9472 or [::]:9472", text)
		}
		out = append(out, at)
	}
	return out, nil
}

func formatServed(at []netip.AddrPort) string {
	if len(at) == 0 {
		return "off"
	}
	return join(at)
}

func parseHostLoopback(s string) ([]netip.Addr, error) {
	const want = "one address that nobody has, or an IPv4 and an IPv6 one: ADDR[,ADDR]"
	return perFamily(s, want, func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() || !a.IsGlobalUnicast() {
			return a, fmt.Errorf("%q is no address that pods can ask for", s)
		}
		return a, nil
	}, netip.Addr.Is4)
}

// parseLinkLocal reads ranges in 169.254.0.0/16 without the pods' gateway. IPv6's
// link-local addresses mean nothing without an interface, which a pod can't name.
func parseLinkLocal(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range strings.Split(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || p.Masked() != p || !p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast() || p.Bits() < 16 || p.Contains(gatewayIPv4) {
			return nil, fmt.Errorf("%q: want prefixes in 169.254.0.0/16 without %v, such as 169.254.169.254/32", text, gatewayIPv4)
		}
		out = append(out, p)
	}
	return out, nil
}

// gatewayIPv4 is the pods' gateway (vswitch.GatewayIPv4).
var gatewayIPv4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})

func parseConfine(s string) (confine.Mode, error) {
	if m := confine.Mode(s); slices.Contains(confine.Modes, m) {
		return m, nil
	}
	return "", errors.New("want on, off or trap")
}

func formatConfine(m confine.Mode) string { return string(m) }
