package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"vswitch/internal/wire"
	"vswitch/vswitch/flow"
)

// HostPortKey names a pod's port on the host.
type HostPortKey struct {
	Pod string // who has it, for people too: namespace/name
	// HostIP is the address of the host; the zero value: all of both families that
	// node ports use, and loopback; 0.0.0.0 and ::, those of one family.
	HostIP   netip.Addr
	Port     uint16
	Protocol uint8 // wire.ProtoTCP or ProtoUDP
}

// HostPort is an entrance that leads to one pod of this node.
type HostPort struct {
	HostPortKey
	// Endpoints are the pod at its own port, one address of each family at most. A
	// family without one is not open.
	Endpoints []Endpoint
}

func (p *HostPort) validate() error {
	switch {
	case p.Protocol != wire.ProtoTCP && p.Protocol != wire.ProtoUDP:
		return fmt.Errorf("protocol %d: want TCP or UDP, as no host socket carries another", p.Protocol)
	case p.Port == 0:
		return errors.New("port 0: want 1 to 65535")
	case p.HostIP.Is4In6() || p.HostIP.IsMulticast():
		return fmt.Errorf("host address %v: want an address of this host", p.HostIP)
	}
	for i := range p.Endpoints {
		if err := p.Endpoints[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

// pools are the endpoints of each family, none where the host address excludes it.
func (p *HostPort) pools() *[2]*pool {
	var ps [2]*pool
	for family := range ps {
		ps[family] = &pool{}
		if p.HostIP.IsValid() && familyOf(p.HostIP) != family {
			continue
		}
		for _, e := range p.Endpoints {
			if familyOf(e.Addr) == family {
				ps[family].backends = append(ps[family].backends, flow.Endpoint{Addr: wire.AddrFrom(e.Addr), Port: e.Port, ID: e.ID})
			}
		}
		slices.SortFunc(ps[family].backends, comparePlaces)
	}
	return &ps
}

// PutHostPort opens a pod's host port, or changes where it leads. An error means
// nothing changed: the value is wrong, or another pod has the port at that
// address. A port that can't be opened, or that a service has, is no error: it is
// listed by Listeners and tried again.
func (g *Gateway) PutHostPort(p HostPort) error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("gateway: host port %d of %s: %w", p.Port, p.Pod, err)
	}
	l := g.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.hostPorts {
		if k.Pod != p.Pod && k.Port == p.Port && k.Protocol == p.Protocol && k.HostIP == p.HostIP {
			return fmt.Errorf("gateway: host port %d of %s belongs to %s", p.Port, p.Pod, k.Pod)
		}
	}
	e := &entrance{kind: HostPortAnywhere, owner: p.Pod, proto: p.Protocol, port: p.Port}
	if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
		e.kind, e.at = HostPortAtAddress, []netip.Addr{p.HostIP}
	}
	e.lead(p.pools())
	var old []*entrance
	if o := l.hostPorts[p.HostPortKey]; o != nil {
		old = append(old, o)
	}
	l.hostPorts[p.HostPortKey] = l.take(e, &old)
	return nil
}

// DeleteHostPort closes a host port; one that is not there is no error.
// Connections by it go on while the pod lives.
func (g *Gateway) DeleteHostPort(k HostPortKey) {
	l := g.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.hostPorts[k]; e != nil {
		delete(l.hostPorts, k)
		l.remove([]*entrance{e})
	}
}
