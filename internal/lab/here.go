package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
)

// Not every part of a lab needs a network namespace of its own: an ordinary user's
// nodes live in the one that the user logs in to, over which neither they nor the lab
// have any power.

// Here is the network namespace that this process is in. It is left as it is.
func (l *Lab) Here(role string) *Namespace {
	return &Namespace{
		Name: namePrefix + l.Suffix + "-" + role, Path: fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), lab: l, here: true,
	}
}

// IsHere reports whether it is this process's own.
func (n *Namespace) IsHere() bool { return n.here }

// AddHere makes a node in this process's own network namespace, at one of its
// addresses. Several may have the same. A node whose daemon runs already, started by
// another lab, is named by its socket; else socket is empty.
func (l *Lab) AddHere(name string, underlay netip.Addr, socket string) (*Node, error) {
	n := &Node{Namespace: l.Here(name), Host: name, socket: socket}
	if underlay.Is4() {
		n.Underlay4 = underlay
	} else {
		n.Underlay6 = underlay
	}
	var err error
	if n.store, err = freePort(underlay); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	return n, nil
}

// freePort is one that nobody listens at now.
func freePort(at netip.Addr) (uint16, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		return 0, fmt.Errorf("lab: a port for a store: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}
