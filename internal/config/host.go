package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vswitch/control/api"
	"vswitch/internal/account"
)

// host answers for the defaults that depend on the machine.
type host interface {
	name() (string, error)
	// underlay finds an address other nodes may reach, in none of the prefixes, and says
	// how it was found.
	underlay(except []netip.Prefix) (netip.Addr, string)
	socket() (string, error)
	stateDir() (string, error)
	// root: of the machine; everybody else is an ordinary user.
	root() bool
}

// fill completes what no source gave.
func (c *Config) fill(h host) error {
	if c.Node == "" {
		name, err := h.name()
		if err == nil {
			c.Node, err = parseNode(strings.ToLower(name))
		}
		if err != nil {
			return fmt.Errorf("--node: the host name %q won't do: %w; want --node NAME", name, err)
		}
	}
	if len(c.Underlay) == 0 {
		a, note := h.underlay(slices.Concat(c.ClusterCIDR, c.ServiceCIDR))
		c.Underlay, c.UnderlayNote = []netip.Addr{a}, note
	}
	if c.DNS.Addrs == nil && !c.Store.Kubernetes { // a cluster of Kubernetes' has a DNS of its own
		c.DNS.Addrs = dnsAddrs(c.ServiceCIDR)
	}
	if c.SocketPath == "" {
		path, err := h.socket()
		if err != nil {
			return fmt.Errorf("--socket: %w; want --socket PATH", err)
		}
		c.SocketPath = path
	}
	if c.RuntimeDir == "" {
		c.RuntimeDir = filepath.Dir(c.SocketPath)
	}
	if c.StateDir == "" {
		dir, err := h.stateDir()
		if err != nil {
			return fmt.Errorf("--state-dir: %w; want --state-dir DIR", err)
		}
		c.StateDir = dir
	}
	return nil
}

// dnsAddrs are the addresses that installers of Kubernetes give to DNS: the tenth of
// each range that has so many.
func dnsAddrs(services []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range services {
		a := p.Addr()
		for range 10 {
			a = a.Next()
		}
		if p.Contains(a) {
			out = append(out, a)
		}
	}
	return out
}

type thisHost struct{}

func (thisHost) name() (string, error) { return os.Hostname() }

// underlay asks the kernel which source address it would use towards the
// documentation ranges (RFC 5737, RFC 3849): that is the default route's. No
// packet is sent by connecting a datagram socket.
//
// A host without any network has the address of its own interface of vswitch's, which is
// a pod's, nevertheless.
func (thisHost) underlay(except []netip.Prefix) (netip.Addr, string) {
	for _, v6 := range []bool{false, true} {
		if a, ok := DefaultUnderlay(v6); ok {
			return a, "default route"
		}
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		if a, ok := firstOutside(addrs, except); ok {
			return a, "no default route; first address of this host"
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1}), "no network; other nodes can't reach this one"
}

func firstOutside(addrs []net.Addr, except []netip.Prefix) (netip.Addr, bool) {
	for _, x := range addrs {
		n, ok := x.(*net.IPNet)
		if !ok {
			continue
		}
		a, _ := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		if a.IsGlobalUnicast() && !slices.ContainsFunc(except, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// DefaultUnderlay is the address of a family that the kernel sends from by the default
// route, if there is one.
func DefaultUnderlay(v6 bool) (netip.Addr, bool) {
	outside := "192.0.2.1:9"
	if v6 {
		outside = "[2001:db8::1]:9"
	}
	conn, err := net.Dial("udp", outside)
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close()
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return a, a.IsGlobalUnicast()
}

func (thisHost) socket() (string, error) { return api.DefaultSocket() }

func (thisHost) root() bool { return account.Own().Root }

func (thisHost) stateDir() (string, error) { return DefaultStateDir() }

// DefaultStateDir is --state-dir where it is not given: vswitch in /var/lib for root,
// in $XDG_STATE_HOME or ~/.local/state for everybody else.
func DefaultStateDir() (string, error) {
	dir, err := account.Own().StateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vswitch"), nil
}
