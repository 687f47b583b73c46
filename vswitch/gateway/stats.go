package gateway

import (
	"sync/atomic"

	"vswitch/vswitch/drop"
)

// Stats are the gateway's counters since New. A frame that was not carried is
// counted by the switch too, under its drop reason and port.
type Stats struct {
	RingDropped uint64 // packets to pods lost because a switch worker fell behind

	EgressOpen      int    // TCP connections of pods through the host, now
	EgressDialed    uint64 // host connections made
	EgressRefused   uint64 // the host or its peer refused: the pod got a reset
	EgressFailed    uint64 // timed out, unreachable, or the pod gave up: likewise
	EgressCapped    uint64 // refused for a cap
	EgressForbidden uint64 // refused for the destination

	IngressOpen      int    // connections and UDP sessions from outside, now
	IngressTotal     uint64 // accepted
	IngressRefused   uint64 // refused: no endpoint, or a cap
	IngressFailed    uint64 // the endpoint could not be reached
	IngressForbidden uint64 // refused for the client's address (SourceRanges)

	Sessions         int    // UDP and echo, now
	SessionsTotal    uint64 // created
	SessionsRecycled uint64 // ended early so that another could have the host socket
	HostSockets      int    // open for UDP and echo, now
	DatagramsOut     uint64 // sent through host sockets
	DatagramsIn      uint64 // received for a session
	Unsolicited      uint64 // received for no session: dropped
	EchoForbidden    uint64 // refused because the host allows no ping sockets

	DNSQueries     uint64 // answered by the node's own DNS server, or left unanswered as it says
	DNSCapped      uint64 // questions and connections refused for a cap
	DNSInProgress  int    // questions by UDP, now
	DNSConnections int    // by TCP, now

	MemoryBytes  int64  // of connections' buffers, as allowed now
	MemoryCapped uint64 // connections that found no room for their first buffers: reset

	Bytes uint64 // moved by TCP, both ways
}

type counters struct {
	egressOpen, ingressOpen, sessions, hostSockets atomic.Int64

	egressDialed, egressRefused, egressFailed, egressCapped, egressForbidden atomic.Uint64
	ingressTotal, ingressRefused, ingressFailed, ingressForbidden            atomic.Uint64
	dnsQueries, dnsCapped, memoryCapped                                      atomic.Uint64
	sessionsTotal, sessionsRecycled                                          atomic.Uint64
	datagramsOut, datagramsIn, unsolicited, echoForbidden, bytes             atomic.Uint64
}

// Stats reads the counters, each by itself.
func (g *Gateway) Stats() Stats {
	c := &g.counters
	return Stats{
		RingDropped: g.link.Dropped(),

		EgressOpen: int(c.egressOpen.Load()), EgressDialed: c.egressDialed.Load(),
		EgressRefused: c.egressRefused.Load(), EgressFailed: c.egressFailed.Load(),
		EgressCapped: c.egressCapped.Load(), EgressForbidden: c.egressForbidden.Load(),

		IngressOpen: int(c.ingressOpen.Load()), IngressTotal: c.ingressTotal.Load(),
		IngressRefused: c.ingressRefused.Load(), IngressFailed: c.ingressFailed.Load(),
		IngressForbidden: c.ingressForbidden.Load(),

		Sessions: int(c.sessions.Load()), SessionsTotal: c.sessionsTotal.Load(),
		SessionsRecycled: c.sessionsRecycled.Load(), HostSockets: int(c.hostSockets.Load()),
		DatagramsOut: c.datagramsOut.Load(), DatagramsIn: c.datagramsIn.Load(),
		Unsolicited: c.unsolicited.Load(), EchoForbidden: c.echoForbidden.Load(),

		DNSQueries: c.dnsQueries.Load(), DNSCapped: c.dnsCapped.Load(),
		DNSInProgress: int(g.dns.queries.Taken()), DNSConnections: int(g.dns.connections.Taken()),

		MemoryBytes: g.memory.Taken(), MemoryCapped: c.memoryCapped.Load(),

		Bytes: c.bytes.Load(),
	}
}

// refused counts a client that got no endpoint.
func (c *counters) refused(r drop.Reason) {
	if r == drop.SourceRange {
		c.ingressForbidden.Add(1)
	} else {
		c.ingressRefused.Add(1)
	}
}
