// Package link joins a gVisor netstack to a switch: packets the netstack sends
// wait in a bounded ring per switch worker, and frames a worker delivers enter
// the netstack as packets.
//
// Segmentation is passed on, never done: a TCP super-frame of up to 64 KiB goes
// through whole in both directions, its metadata in the frame's virtio-net
// header. Checksums are judged here, because the netstack is told not to. The
// package opens no socket and knows no service; package gateway sees every frame
// before the netstack does (Handler).
package link

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// gsoMaxBytes is the longest IP packet (RFC 791 section 3.1: a 16-bit length).
// The netstack subtracts its headers from it.
const gsoMaxBytes = 65535

// Handler decides about frames before the netstack gets them.
type Handler interface {
	// Inbound is called by worker threads, concurrently. It returns true when it
	// has dealt with the frame, setting f.Drop if it could not; on false the frame
	// goes to the netstack. f and h are borrowed for the call.
	Inbound(f *frame.Frame, h *wire.Headers) bool
}

// Config is what a Link is built from.
type Config struct {
	Queues      int // one a switch worker
	RingPackets int // that wait for one worker; more are dropped
	MTUBytes    int
	MAC         frame.MAC // source of every frame
	Handler     Handler
}

// Link is the netstack's only link, seen by it as two interfaces: packets that
// arrive whole come by one that claims receive checksum offload, and were
// verified here; fragments come by one that does not, since nothing can be
// verified before they are joined.
type Link struct {
	mac       frame.MAC
	handler   Handler
	queues    []Queue
	whole     endpoint
	fragments endpoint
}

// New makes a link that is not attached to a stack yet.
func New(c Config) (*Link, error) {
	l := &Link{mac: c.MAC, handler: c.Handler, queues: make([]Queue, c.Queues)}
	l.whole = endpoint{link: l, caps: stack.CapabilityRXChecksumOffload}
	l.fragments = endpoint{link: l}
	for _, ep := range []*endpoint{&l.whole, &l.fragments} {
		ep.mtu.Store(uint32(c.MTUBytes))
	}
	for i := range l.queues {
		q := &l.queues[i]
		q.link = l
		if err := q.ring.open(c.RingPackets); err != nil {
			for j := range i {
				l.queues[j].Close()
			}
			return nil, fmt.Errorf("link: queue %d: %w", i, err)
		}
	}
	return l, nil
}

// Close closes all queues, for a link that no switch has got.
func (l *Link) Close() {
	for i := range l.queues {
		l.queues[i].Close()
	}
}

// Queue is worker i's side.
func (l *Link) Queue(i int) *Queue { return &l.queues[i] }

// Whole and Fragments are the two interfaces for the stack to create.
func (l *Link) Whole() stack.LinkEndpoint { return &l.whole }

// Fragments is the interface that claims no offload.
func (l *Link) Fragments() stack.LinkEndpoint { return &l.fragments }

// Dropped counts packets lost because a ring was full or closed.
func (l *Link) Dropped() uint64 {
	var n uint64
	for i := range l.queues {
		n += l.queues[i].ring.dropped.Load()
	}
	return n
}

// WriteIP queues an IP packet with complete checksums; it is copied.
func (l *Link) WriteIP(ip []byte) bool {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(ip)})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	if ip[0]>>4 == 6 {
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	}
	return l.write(pkt)
}

// write puts a packet into the ring of its flow's queue, taking a reference.
func (l *Link) write(pkt *stack.PacketBuffer) bool {
	i := 0
	if len(l.queues) > 1 {
		i = l.queueFor(flowHash(pkt))
	}
	return l.queues[i].ring.push(pkt)
}

func (l *Link) queueFor(hash uint32) int {
	return int(uint64(hash) * uint64(len(l.queues)) >> 32)
}

// QueueOf is the queue that the netstack's TCP packets from src to dst go through.
func (l *Link) QueueOf(src, dst tcpip.Address, srcPort, dstPort uint16) int {
	h := mixAll(mixAll(0, src.AsSlice()), dst.AsSlice())
	return l.queueFor(mix(h, uint32(srcPort)<<16|uint32(dstPort)))
}

// flowHash is equal for all packets of a flow, which is what keeps them in order. It is
// made of addresses and ports for TCP, as in QueueOf; for all else it is the hash
// that comes with the packet, or one over the addresses.
func flowHash(pkt *stack.PacketBuffer) uint32 {
	ports := pkt.TransportHeader().Slice()
	isTCP := pkt.TransportProtocolNumber == header.TCPProtocolNumber && len(ports) >= 4
	if pkt.Hash != 0 && !isTCP {
		return pkt.Hash
	}
	var h uint32
	switch ip := pkt.NetworkHeader().Slice(); {
	case len(ip) >= wire.IPv6Bytes && pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber:
		h = mixAll(h, ip[8:40])
	case len(ip) >= wire.IPv4Bytes:
		h = mixAll(h, ip[12:20])
	}
	if isTCP {
		h = mixAll(h, ports[:4])
	}
	return h
}

func mixAll(h uint32, b []byte) uint32 {
	for ; len(b) >= 4; b = b[4:] {
		h = mix(h, binary.BigEndian.Uint32(b))
	}
	return h
}

// mix is Knuth's multiplicative hash, by 2^32/phi.
func mix(h, word uint32) uint32 { return (h ^ word) * 0x9e3779b1 }

// endpoint is one interface as the netstack sees it.
type endpoint struct {
	link       *Link
	caps       stack.LinkEndpointCapabilities
	mtu        atomic.Uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
}

var (
	_ stack.LinkEndpoint = (*endpoint)(nil)
	_ stack.GSOEndpoint  = (*endpoint)(nil)
)

// splitBytes is the size of a packet from which its headers get a buffer of their
// own. The netstack holds a reference to them while it reads them, and for that
// copies the buffer they lie in: of a super-frame 64 KiB, which are zeroed before.
const splitBytes = 4 << 10

// deliver hands an IP packet, copied, to the netstack. The first headerBytes of it
// are headers.
func (e *endpoint) deliver(ip []byte, headerBytes int, v6 bool) {
	d := e.dispatcher.Load()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if v6 {
		proto = header.IPv6ProtocolNumber
	}
	headers, payload := ip, []byte(nil)
	if len(ip) >= splitBytes {
		headers, payload = ip[:headerBytes], ip[headerBytes:]
	}
	b := buffer.MakeWithView(buffer.NewViewWithData(headers))
	if len(payload) > 0 {
		b.Append(buffer.NewViewWithData(payload))
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	(*d).DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets queues what the netstack sends. A full ring drops, as a device
// would; TCP finds out by itself.
func (e *endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if e.link.write(pkt) {
			sent++
		}
	}
	if sent == 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	return sent, nil
}

// Attach gives or, with nil, takes away the netstack's entrance.
func (e *endpoint) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&d)
}

func (e *endpoint) IsAttached() bool                             { return e.dispatcher.Load() != nil }
func (e *endpoint) MTU() uint32                                  { return e.mtu.Load() }
func (e *endpoint) SetMTU(mtu uint32)                            { e.mtu.Store(mtu) }
func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities { return e.caps }
func (e *endpoint) SupportedGSO() stack.SupportedGSO             { return stack.HostGSOSupported }
func (e *endpoint) GSOMaxSize() uint32                           { return gsoMaxBytes }

// The Ethernet header is written by Queue.Receive, outside the netstack, which
// so needs no neighbour discovery.
func (*endpoint) MaxHeaderLength() uint16                 { return 0 }
func (*endpoint) LinkAddress() tcpip.LinkAddress          { return "" }
func (*endpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (*endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*endpoint) AddHeader(*stack.PacketBuffer)           {}
func (*endpoint) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*endpoint) Wait()                                   {}
func (*endpoint) Close()                                  {}
func (*endpoint) SetOnCloseAction(func())                 {}
