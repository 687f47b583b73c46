// Package drop names every reason for which the switch does not forward a
// frame, and nothing else.
//
// There are no errors on the datapath, only reasons: each exit that loses a
// frame names one, and each is counted by port (vswitch.Stats). Adding one
// means adding its constant, its name here and its line in docs/counters.md; a
// test holds the three together. Any package may import this one.
package drop

import "fmt"

// Reason is why a frame was not forwarded. The zero value is None: not dropped.
type Reason uint8

// The reasons, grouped by the stage that finds them.
const (
	None Reason = iota

	// Headers that can't be trusted or understood.
	Truncated      // a header or its length field exceeds the bytes received
	BadVersion     // IP version does not match the EtherType
	BadHeader      // a header length below its minimum, or an illegal field
	BadChecksum    // IPv4 header, or a transport checksum where it is verified
	BadOffload     // the virtio-net header contradicts the frame
	UnknownType    // EtherType other than ARP, IPv4 and IPv6, VLAN tags included
	TooManyHeaders // IPv6 extension headers beyond the bound

	// Port guards: what a pod may say of itself.
	SpoofedMAC    // source MAC is not the port's
	SpoofedIP     // source address is not the port's
	SpoofedARP    // ARP sender is not the port's MAC and address
	SpoofedND     // ND target or link-layer option is not the port's
	RogueRA       // router advertisement or redirect from a pod
	RogueDHCP     // DHCP server answer from a pod
	WrongGateway  // destination MAC is not the gateway's
	Multicast     // multicast or broadcast: there is no broadcast domain
	MartianSource // source address that must not appear on a wire
	MartianTarget // destination address that must not appear on a wire
	NotForUs      // ARP or ND for an address that the switch does not answer
	TunnelPort    // a pod's datagram to a node's tunnel port
	NotAttached   // the port is not open to traffic yet, or no longer

	// Forwarding.
	NoRoute        // no route to the destination
	HopLimit       // TTL or hop limit ran out
	TooBig         // larger than the egress MTU and not to be fragmented
	Reflected      // would leave through the port it came in by
	ReservedRouter // to the node's router address, and no flow is known

	// Flows and services.
	NoEndpoint    // the service has no endpoint that takes flows: refused
	NoService     // the VIP has no such port: refused
	SourceRange   // the client is outside the service's source ranges: refused
	FlowTableFull // a flow that needs a rewrite found no room
	PodFlowCap    // the pod has as many flows as one pod may have
	NoSourcePort  // every alternative source port is taken
	StrayFragment // a fragment whose flow can't be told
	NoFlow        // a TCP segment or an ICMP error about a connection that nobody here knows
	ConnectionCap // the pod has as many connections in progress as it may

	// Tunnel.
	NotVXLAN      // runt, or the VNI-valid flag is not set (RFC 7348 section 5)
	UnknownVNI    // a VNI this node does not serve
	NotMember     // outer source is no member of the cluster
	ForeignSource // inner source does not belong to the member that sent it
	BadInner      // inner frame that no VTEP may send
	Congested     // congestion marked outside a packet that can't carry the mark (RFC 6040 section 4.2)
	NoPeer        // the member is gone, or takes no traffic from outside
	IngressSource // from outside by the sender's word, and yet an address of the cluster
	NotExposed    // from outside to what no service offers outside
	SourceTaken   // from outside with the source port of another's connection

	// Egress.
	EgressFull    // the device or socket takes no more now
	EgressDown    // the device or socket is gone or down
	EgressRefused // the kernel refused the frame as malformed

	// Gateway.
	EgressDenied  // the outside address is one the node does not serve
	EchoForbidden // the host does not allow ping sockets
	UnsupportedL4 // a protocol the gateway can't carry outside
	Draining      // a connection that would begin while the node's daemon ends

	// Replies the switch holds back.
	ReplyLimited // an answer of the switch's own was over its rate

	count
)

// Count is the number of reasons, None included: the length of a counter array.
const Count = int(count)

var names = [count]string{
	None: "none",

	Truncated: "truncated", BadVersion: "bad-version", BadHeader: "bad-header",
	BadChecksum: "bad-checksum", BadOffload: "bad-offload", UnknownType: "unknown-type",
	TooManyHeaders: "too-many-headers",

	SpoofedMAC: "spoofed-mac", SpoofedIP: "spoofed-ip", SpoofedARP: "spoofed-arp",
	SpoofedND: "spoofed-nd", RogueRA: "rogue-ra", RogueDHCP: "rogue-dhcp",
	WrongGateway: "wrong-gateway", Multicast: "multicast", MartianSource: "martian-source",
	MartianTarget: "martian-target", NotForUs: "not-for-us", TunnelPort: "tunnel-port",
	NotAttached: "not-attached",

	NoRoute: "no-route", HopLimit: "hop-limit", TooBig: "too-big", Reflected: "reflected",
	ReservedRouter: "reserved-router",

	NoEndpoint: "no-endpoint", NoService: "no-service", SourceRange: "source-range", FlowTableFull: "flow-table-full",
	PodFlowCap: "pod-flow-cap", NoSourcePort: "no-source-port", StrayFragment: "stray-fragment", NoFlow: "no-flow",
	ConnectionCap: "connection-cap",

	NotVXLAN: "not-vxlan", UnknownVNI: "unknown-vni", NotMember: "not-member",
	ForeignSource: "foreign-source", BadInner: "bad-inner", Congested: "congested", NoPeer: "no-peer",
	IngressSource: "ingress-source", NotExposed: "not-exposed", SourceTaken: "source-taken",

	EgressFull: "egress-full", EgressDown: "egress-down", EgressRefused: "egress-refused",

	EgressDenied: "egress-denied", EchoForbidden: "echo-forbidden",
	UnsupportedL4: "unsupported-l4", Draining: "draining",

	ReplyLimited: "reply-limited",
}

// String returns the reason's name as counters and the command line print it.
func (r Reason) String() string {
	if int(r) < len(names) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}
