package gateway

import (
	"errors"
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vswitch/internal/wire"
	"vswitch/vswitch/gateway/link"
)

// The netstack's two interfaces; see link.Link. Both are the same wire.
const (
	nicWhole     tcpip.NICID = 1
	nicFragments tcpip.NICID = 2
)

// Buffers of one TCP endpoint, taken only as bytes wait. Autotuning, or where a
// connection has one its allowance, raises them towards the maximum, which carries
// 3 Gb/s over 20 ms.
//
// They begin with what an allowance begins with, and never shrink before that: a Linux
// peer makes no segment longer than half of the largest window it has seen, so one that
// saw a larger window than there then is, at an MTU beyond it, waits for room that never
// comes and moves a window at each probe, five a second.
const (
	bufferMinBytes     = 4 << 10
	bufferDefaultBytes = firstBufferBytes
	bufferMaxBytes     = 8 << 20
)

// timeWait is how long the tuple of a connection rests that this side closed first. RFC
// 9293 section 3.4.2 wants twice the longest life of a segment; between here and a pod of
// this node that is less than a millisecond, and between nodes few. It is no more than
// needed, since the netstack drops a SYN that comes meanwhile, without a word: Linux takes
// a port again at once whose server closed first, after some 3,000 connections to it, and
// then waited for seconds. Nothing is lost should a last acknowledgement be: the
// pod's FIN, sent again, is answered by a reset, and it had nothing more to hear.
const timeWait = 50 * time.Millisecond

// newStack makes the netstack: it takes packets for any destination and sends
// with any source, since it stands for the whole world. It owns no address, so
// that it never speaks on its own (no duplicate address detection, no MLD).
//
// HandleLocal is off: with it, a promiscuous interface drops packets whose
// source it believes its own, and that is every address ever spoofed.
func newStack(l *link.Link) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		HandleLocal:        false,
	})
	if err := errors.Join(setTCPOptions(s), attach(s, nicWhole, l.Whole()), attach(s, nicFragments, l.Fragments())); err != nil {
		s.Destroy()
		return nil, err
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicWhole},
		{Destination: header.IPv6EmptySubnet, NIC: nicWhole},
		{Destination: header.IPv4EmptySubnet, NIC: nicFragments},
		{Destination: header.IPv6EmptySubnet, NIC: nicFragments},
	})
	return s, nil
}

// setTCPOptions chooses what the defaults don't suit.
//
// RACK (RFC 8985) is off, and with it the tail loss probe, which the netstack sends
// after two round trips without an answer. To a pod of this node those are two
// milliseconds at most, and a busy host pauses a process for as long; the probe
// then counts as a loss (its DSACK comes behind the acknowledgement that ends the
// episode) and takes 3/10 of the congestion window. On two busy cores that happened
// hundreds of times a second, until the window was some ten segments and each frame
// as small: 0.9 to 1.9 Gb/s where it is 2.6 to 5.8 without, and 0.3 seen. Nothing is
// lost between here and a pod of this node; towards another node selective
// acknowledgements (RFC 6675) find losses, all but those of a connection's last segments,
// which wait for the timer.
func setTCPOptions(s *stack.Stack) error {
	noRACK := tcpip.TCPRecovery(0)
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	cubic := tcpip.CongestionControlOption("cubic")
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		&noRACK, &sack, &moderate, &cubic, &wait,
		&tcpip.TCPSendBufferSizeRangeOption{Min: bufferMinBytes, Default: bufferDefaultBytes, Max: bufferMaxBytes},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMinBytes, Default: bufferDefaultBytes, Max: bufferMaxBytes},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("netstack: set %T: %w", opt, stackError{err})
		}
	}
	return nil
}

func attach(s *stack.Stack, id tcpip.NICID, ep stack.LinkEndpoint) error {
	if err := s.CreateNIC(id, ep); err != nil {
		return fmt.Errorf("netstack: create interface: %w", stackError{err})
	}
	if err := s.SetPromiscuousMode(id, true); err != nil {
		return fmt.Errorf("netstack: promiscuous mode: %w", stackError{err})
	}
	if err := s.SetSpoofing(id, true); err != nil {
		return fmt.Errorf("netstack: spoofing: %w", stackError{err})
	}
	return nil
}

// stackError makes an error of a tcpip.Error, which is none by itself.
type stackError struct{ err tcpip.Error }

func (e stackError) Error() string { return e.err.String() }

// tcpipAddr and addrOf translate addresses.
func tcpipAddr(a *wire.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4([4]byte(a[12:]))
	}
	return tcpip.AddrFrom16(*a)
}

func addrOf(a tcpip.Address) wire.Addr {
	if a.Len() == header.IPv4AddressSize {
		return wire.AddrFrom4(a.AsSlice())
	}
	return wire.Addr(a.AsSlice())
}

// protocolOf is the network protocol of an address.
func protocolOf(a *wire.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}
