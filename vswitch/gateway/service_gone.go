package gateway

import (
	"net/netip"
	"slices"

	"vswitch/internal/wire"
)

// Gone says that a service stopped sending to an endpoint: it was removed, takes no
// new flows any more, or the service itself is gone. UDP flows to Endpoint by way of
// VIPs and Port, or of a node's address and NodePort, must be forgotten, or their
// client never finds another. TCP connections go on while the service lists the
// endpoint, so that one that terminates drains; once Removed they must be forgotten
// too, so that the client's next segment is answered with a reset and can't reach
// whoever gets the address next.
type Gone struct {
	Endpoint uint64
	Service  ServiceKey
	Protocol uint8
	VIPs     []netip.Addr // of the endpoint's family, by which nothing goes to it any more
	Port     uint16
	NodePort uint16 // likewise at every node's address; zero: none
	// Removed: the service no longer lists the endpoint at all.
	Removed bool
}

// begin registers a connection so that it can be ended; false: it must end now, as
// the gateway closes or its endpoint was removed while it was made.
func (g *Gateway) begin(c connection) bool {
	if !g.connections.add(c) {
		return false
	}
	b := c.backend()
	if b == (backend{}) || g.services.lists(b) {
		return true
	}
	g.connections.remove(c)
	return false
}

// abortGone ends the netstack's connections to endpoints that were removed.
func (g *Gateway) abortGone(gone []Gone) {
	var removed map[backend]bool
	for i := range gone {
		if gone[i].Removed && gone[i].Protocol == wire.ProtoTCP {
			if removed == nil {
				removed = make(map[backend]bool)
			}
			removed[backend{gone[i].Service, gone[i].Endpoint}] = true
		}
	}
	if removed != nil {
		g.connections.abortIf(func(c connection) bool { return removed[c.backend()] })
	}
}

// endpointsGone lists what prev sent to and next does not; either may be nil. An
// endpoint that stays is gone all the same for a VIP that does not. Both lists of
// endpoints are sorted (Service.clone).
func endpointsGone(prev, next *Service) []Gone {
	if prev == nil {
		return nil
	}
	var vips []netip.Addr // that stay
	var endpoints []Endpoint
	if next != nil {
		endpoints = next.Endpoints
		if next.Protocol == prev.Protocol && next.Port == prev.Port {
			vips = slices.Collect(next.addresses())
		}
	}
	nodePort := prev.NodePort
	if next != nil && next.Protocol == prev.Protocol && next.NodePort == nodePort {
		nodePort = 0 // stays
	}
	var lost [2][]netip.Addr // by family
	for a := range prev.addresses() {
		if !slices.Contains(vips, a) {
			lost[familyOf(a)] = append(lost[familyOf(a)], a)
		}
	}
	var gone []Gone
	for i := range prev.Endpoints {
		e := &prev.Endpoints[i]
		var listed, stays bool
		for len(endpoints) > 0 && endpoints[0].ID < e.ID {
			endpoints = endpoints[1:]
		}
		for j := 0; j < len(endpoints) && endpoints[j].ID == e.ID; j++ {
			listed = true
			stays = stays || endpoints[j].compare(e) == 0 && endpoints[j].takesNew()
		}
		if !e.takesNew() && listed {
			continue
		}
		family := familyOf(e.Addr)
		g := Gone{
			Endpoint: e.ID, Service: prev.ServiceKey, Protocol: prev.Protocol, Port: prev.Port,
			VIPs: lost[family], NodePort: nodePort, Removed: !listed,
		}
		if !stays {
			g.VIPs, g.NodePort = addressesOf(prev, family), prev.NodePort
		}
		if !stays || g.VIPs != nil || g.NodePort != 0 {
			gone = append(gone, g)
		}
	}
	return gone
}

// addressesOf are the addresses of one family at which s is served.
func addressesOf(s *Service, family int) (as []netip.Addr) {
	for a := range s.addresses() {
		if familyOf(a) == family {
			as = append(as, a)
		}
	}
	return as
}
