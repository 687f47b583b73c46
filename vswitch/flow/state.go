package flow

import (
	"fmt"
	"time"

	"vswitch/internal/wire"
)

// State is where a connection stands in its protocol, as far as the switch sees
// it: flags and directions, no sequence numbers. It decides how long the
// connection may be idle and whether a SYN may take its place.
//
//	SYN             SYN (ACK) back       ACK                 FIN                  FIN of the other side
//	----> SynSent ---------------> SynReceived --> Established --> HalfClosed... ------> TimeWait
//	else                             answer            ^
//	----> Midstream -----------------------------------+         RST in any of them ------> Closed
//
// A SYN in TimeWait or Closed begins a new connection (Hit.Reopens); elsewhere it
// is the endpoints' to judge (RFC 9293 section 3.10.7.4). A FIN before Established moves
// nothing, so that nobody holds a record for long without the peer's consent.
type State uint8

// States.
const (
	SynSent           State = iota
	SynReceived             // the answer to the SYN was seen
	Established             // both sides have spoken and acknowledged
	Midstream               // begun before the switch saw it; no answer seen yet
	HalfClosedForward       // FIN from the side that opened
	HalfClosedReply         // FIN from the other
	TimeWait                // FIN from both
	Closed                  // RST
	UDPSingle               // no answer yet
	UDPReplied              // answered, and younger than udpStreamTicks
	UDPStream
	SCTPSingle
	SCTPReplied
	Echo
	Other // any other protocol
	states
)

var stateNames = [states]string{
	SynSent: "syn-sent", SynReceived: "syn-received", Established: "established", Midstream: "midstream",
	HalfClosedForward: "half-closed-forward", HalfClosedReply: "half-closed-reply",
	TimeWait: "time-wait", Closed: "closed",
	UDPSingle: "udp-single", UDPReplied: "udp-replied", UDPStream: "udp-stream",
	SCTPSingle: "sctp-single", SCTPReplied: "sctp-replied", Echo: "echo", Other: "other",
}

func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// udpStreamTicks: two seconds, as in Linux's nf_conntrack_proto_udp.c. A lookup
// of A and AAAA from one socket is over by then and stays a single exchange.
const udpStreamTicks = 20

// first is the state of a connection whose first packet this is.
func first(proto, tcpFlags uint8) State {
	switch proto {
	case wire.ProtoTCP:
		switch {
		case tcpFlags&wire.RST != 0:
			return Closed
		case tcpFlags&(wire.SYN|wire.ACK) == wire.SYN:
			return SynSent
		}
		return Midstream
	case wire.ProtoUDP:
		return UDPSingle
	case wire.ProtoSCTP:
		return SCTPSingle
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return Echo
	}
	return Other
}

// of reports whether a connection of this protocol can be in state s.
func (s State) of(proto uint8) bool {
	switch proto {
	case wire.ProtoTCP:
		return s <= Closed
	case wire.ProtoUDP:
		return s >= UDPSingle && s <= UDPStream
	case wire.ProtoSCTP:
		return s == SCTPSingle || s == SCTPReplied
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return s == Echo
	}
	return s == Other
}

// next is the state after a packet in direction dir.
func next(s State, dir Direction, tcpFlags uint8, ageTicks uint32) State {
	if s <= Closed {
		return nextTCP(s, dir, tcpFlags)
	}
	switch {
	case s == UDPSingle && dir == Reply:
		return UDPReplied
	case s == UDPReplied && ageTicks > udpStreamTicks:
		return UDPStream
	case s == SCTPSingle && dir == Reply:
		return SCTPReplied
	}
	return s
}

func nextTCP(s State, dir Direction, flags uint8) State {
	if flags&wire.RST != 0 {
		return Closed
	}
	switch s {
	case SynSent:
		if dir == Reply && flags&wire.SYN != 0 {
			return SynReceived
		}
		return s
	case SynReceived:
		if dir == Reply || flags&(wire.SYN|wire.ACK) != wire.ACK {
			return s
		}
		s = Established
	case Midstream:
		if dir == Forward {
			return s
		}
		s = Established
	}
	if flags&wire.FIN == 0 {
		return s
	}
	switch {
	case s == Established && dir == Forward:
		return HalfClosedForward
	case s == Established:
		return HalfClosedReply
	case s == HalfClosedForward && dir == Reply, s == HalfClosedReply && dir == Forward:
		return TimeWait
	}
	return s
}

func reopens(s State, tcpFlags uint8) bool {
	return (s == TimeWait || s == Closed) && tcpFlags&(wire.SYN|wire.ACK|wire.RST) == wire.SYN
}

// Timeouts is how long a connection may be idle before it is forgotten, by
// protocol and state. Zero means the default, which is Linux conntrack's
// (Documentation/networking/nf_conntrack-sysctl.rst) but for:
//
//   - TCPEstablished and TCPHalfClosed, where kube-proxy, which this table
//     replaces, sets 24 h for conntrack's five days and 1 h for its one minute
//     (--conntrack-tcp-timeout-established, --conntrack-tcp-timeout-close-wait): servers
//     answer for longer than a minute after the client's FIN.
//   - SCTPEstablished: the switch does not read chunks and so sees no SHUTDOWN. An
//     association that lives sends heartbeats within conntrack's 210 s
//     (HB.interval x Path.Max.Retrans + RTO.Max, RFC 9260 section 16).
type Timeouts struct {
	TCPSynSent      time.Duration // 2 min
	TCPSynReceived  time.Duration // 1 min
	TCPEstablished  time.Duration // 24 h; RFC 5382 REQ-5 wants 2 h 4 min at least
	TCPMidstream    time.Duration // 5 min
	TCPHalfClosed   time.Duration // 1 h
	TCPTimeWait     time.Duration // 2 min
	TCPClosed       time.Duration // 10 s
	UDPSingle       time.Duration // 30 s; also an answered exchange of less than 2 s
	UDPStream       time.Duration // 2 min; RFC 4787 REQ-5
	SCTPHandshake   time.Duration // 30 s
	SCTPEstablished time.Duration // 3 min 30 s
	Echo            time.Duration // 30 s
	Other           time.Duration // 10 min
}

// maxTimeout keeps the difference of two ticks within 31 bits with room to spare.
const maxTimeout = 365 * 24 * time.Hour

func (t *Timeouts) fields() []struct {
	name   string
	value  *time.Duration
	def    time.Duration
	states []State
} {
	type field = struct {
		name   string
		value  *time.Duration
		def    time.Duration
		states []State
	}
	return []field{
		{"TCPSynSent", &t.TCPSynSent, 2 * time.Minute, []State{SynSent}},
		{"TCPSynReceived", &t.TCPSynReceived, time.Minute, []State{SynReceived}},
		{"TCPEstablished", &t.TCPEstablished, 24 * time.Hour, []State{Established}},
		{"TCPMidstream", &t.TCPMidstream, 5 * time.Minute, []State{Midstream}},
		{"TCPHalfClosed", &t.TCPHalfClosed, time.Hour, []State{HalfClosedForward, HalfClosedReply}},
		{"TCPTimeWait", &t.TCPTimeWait, 2 * time.Minute, []State{TimeWait}},
		{"TCPClosed", &t.TCPClosed, 10 * time.Second, []State{Closed}},
		{"UDPSingle", &t.UDPSingle, 30 * time.Second, []State{UDPSingle, UDPReplied}},
		{"UDPStream", &t.UDPStream, 2 * time.Minute, []State{UDPStream}},
		{"SCTPHandshake", &t.SCTPHandshake, 30 * time.Second, []State{SCTPSingle}},
		{"SCTPEstablished", &t.SCTPEstablished, 210 * time.Second, []State{SCTPReplied}},
		{"Echo", &t.Echo, 30 * time.Second, []State{Echo}},
		{"Other", &t.Other, 10 * time.Minute, []State{Other}},
	}
}

// validate fills in the defaults.
func (t *Timeouts) validate() error {
	for _, f := range t.fields() {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < TickDuration || *f.value > maxTimeout {
			return fmt.Errorf("flow: timeout %s is %v, want %v to %v", f.name, *f.value, TickDuration, maxTimeout)
		}
	}
	return nil
}

func (t *Timeouts) ticks() (out [states]uint32) {
	for _, f := range t.fields() {
		for _, s := range f.states {
			out[s] = uint32((*f.value + TickDuration - 1) / TickDuration)
		}
	}
	return out
}
