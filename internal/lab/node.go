package lab

import (
	"errors"
	"fmt"
	"net/netip"
)

// The underlay as AddNode builds it:
//
//	node a            node b            outside
//	eth0 192.0.2.11   eth0 192.0.2.12   eth0 192.0.2.254, lo 198.51.100.1
//	     2001:db8::b       2001:db8::c       2001:db8::fe, lo 2001:db8:1::1
//	  |                 |                 |
//	  +------------- br0, alone in the namespace "underlay" ----+
//
// A node's default route leads to the outside machine. AddPair joins two nodes
// by one veth pair instead, with nothing in between that would cost a
// benchmark CPU.

// underlayDevice is the name of a node's link to the underlay.
const underlayDevice = "eth0"

// Node is a machine on the underlay: its namespace stands for the host's.
type Node struct {
	*Namespace
	// Host is the node's name without the lab's suffix.
	Host string
	// Underlay addresses; the zero Addr for a family the underlay hasn't got.
	Underlay4, Underlay6 netip.Addr

	daemon *Process
	run    RunConfig
	pods   int     // containers made so far: numbers their names
	socket string  // of its daemon; empty: in the lab's directory
	store  uint16  // the port of its embedded store; 0: 2379
	system *System // that runs it; nil: none
}

// Underlay is the node's IPv4 address, or its IPv6 address where there is none.
func (n *Node) Underlay() netip.Addr {
	if n.Underlay4.IsValid() {
		return n.Underlay4
	}
	return n.Underlay6
}

// AddNode makes a machine on the underlay's bridge.
func (l *Lab) AddNode(name string) (*Node, error) {
	n, err := l.newMachine(name, firstNode+len(l.Nodes()))
	if err != nil {
		return nil, err
	}
	if err := l.plug(n); err != nil {
		return nil, err
	}
	if err := n.defaultRoutes(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	l.cfg.Logf("node %s: %s, namespace %s", name, n.Underlay(), n.Name)
	return n, nil
}

// AddPair makes two machines joined by a cable, without an underlay bridge and
// without a way outside.
func (l *Lab) AddPair(a, b string) (*Node, *Node, error) {
	first := firstNode + len(l.Nodes())
	na, err := l.newMachine(a, first)
	if err != nil {
		return nil, nil, err
	}
	nb, err := l.newMachine(b, first+1)
	if err != nil {
		return nil, nil, err
	}
	if err := connect(na.Namespace, underlayDevice, nb.Namespace, underlayDevice, l.cfg.MTUBytes, l.cfg.Offload); err != nil {
		return nil, nil, err
	}
	for _, n := range []*Node{na, nb} {
		if err := n.addresses(); err != nil {
			return nil, nil, err
		}
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, na, nb)
	l.mu.Unlock()
	return na, nb, nil
}

// Outside is the machine outside: on the underlay, not a node, holder of World4
// and World6. It is made at the first call, or with the first node.
func (l *Lab) Outside() (*Node, error) {
	l.mu.Lock()
	n := l.outside
	l.mu.Unlock()
	if n != nil {
		return n, nil
	}
	n, err := l.newMachine("outside", outsideHost)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.outside = n
	l.mu.Unlock()
	if err := l.plug(n); err != nil {
		return nil, err
	}
	if n.Underlay4.IsValid() {
		err = n.address("lo", netip.PrefixFrom(World4, 32))
	}
	if n.Underlay6.IsValid() {
		err = errors.Join(err, n.address("lo", netip.PrefixFrom(World6, 128)))
	}
	return n, err
}

// newMachine makes a namespace with what a booted host has: lo up, ping sockets
// allowed. number is its place in the underlay prefixes.
func (l *Lab) newMachine(name string, number int) (*Node, error) {
	space, err := l.NewNamespace(name)
	if err != nil {
		return nil, err
	}
	n := &Node{Namespace: space, Host: name}
	if !l.cfg.NoIPv4 {
		n.Underlay4 = host(underlay4, number)
	}
	if !l.cfg.NoIPv6 {
		n.Underlay6 = host(underlay6, number)
	}
	return n, errors.Join(n.up("lo"), n.noDAD(), n.AllowPing())
}

// plug joins a machine to the underlay's bridge, which it makes if need be.
func (l *Lab) plug(n *Node) error {
	bridge, err := l.underlayBridge()
	if err != nil {
		return err
	}
	port := "p-" + n.Host
	if len(port) > 15 { // IFNAMSIZ less its zero
		return fmt.Errorf("lab: node name %q is longer than 13 characters", n.Host)
	}
	if err := connect(n.Namespace, underlayDevice, bridge, port, l.cfg.MTUBytes, l.cfg.Offload); err != nil {
		return err
	}
	return errors.Join(bridge.enslave(port, "br0"), n.addresses())
}

func (l *Lab) underlayBridge() (*Namespace, error) {
	l.mu.Lock()
	b := l.bridge
	l.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := l.NewNamespace("underlay")
	if err != nil {
		return nil, err
	}
	if err := b.newBridge("br0", l.cfg.MTUBytes); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.bridge = b
	l.mu.Unlock()
	return b, nil
}

// UnderlayNamespace is where the underlay's bridge lives: the place to capture
// everything that crosses it, on br0. Nil before the first node.
func (l *Lab) UnderlayNamespace() *Namespace {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bridge
}

func (n *Node) addresses() error {
	var err error
	if n.Underlay4.IsValid() {
		err = n.address(underlayDevice, netip.PrefixFrom(n.Underlay4, underlay4.Bits()))
	}
	if n.Underlay6.IsValid() {
		err = errors.Join(err, n.address(underlayDevice, netip.PrefixFrom(n.Underlay6, underlay6.Bits())))
	}
	return err
}

func (n *Node) defaultRoutes() error {
	outside, err := n.lab.Outside()
	if err != nil {
		return err
	}
	if n.Underlay4.IsValid() {
		err = n.route(netip.MustParsePrefix("0.0.0.0/0"), outside.Underlay4, underlayDevice, false)
	}
	if n.Underlay6.IsValid() {
		err = errors.Join(err, n.route(netip.MustParsePrefix("::/0"), outside.Underlay6, underlayDevice, false))
	}
	return err
}
