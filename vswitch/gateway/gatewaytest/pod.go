package gatewaytest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway/link"
)

const podMTUBytes = 1450 // 1,500 less VXLAN over IPv4

// Pod is a host with one interface and a default route.
type Pod struct {
	t     testing.TB
	Stack *stack.Stack
	addrs []netip.Addr
	link  *link.Link
	queue *link.Queue
}

// Pod adds a pod with these addresses.
func (n *Net) Pod(addrs ...string) *Pod {
	n.t.Helper()
	p := &Pod{t: n.t, addrs: Addrs(addrs...)}
	var err error
	p.link, err = link.New(link.Config{
		Queues: 1, RingPackets: 4096, MTUBytes: podMTUBytes, MAC: frame.MAC{2, 0, 0x5e, 0, 0, byte(len(n.pods) + 1)},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	p.queue = p.link.Queue(0)
	p.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	for id, ep := range map[tcpip.NICID]stack.LinkEndpoint{1: p.link.Whole(), 2: p.link.Fragments()} {
		p.must(p.Stack.CreateNIC(id, ep))
		p.must(p.Stack.SetPromiscuousMode(id, id == 2))
	}
	sack := tcpip.TCPSACKEnabled(true)
	p.must(p.Stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	for _, a := range p.addrs {
		p.must(p.Stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
			Protocol:          protocolOf(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}))
	}
	p.Stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: 1},
		{Destination: header.IPv6EmptySubnet, NIC: 1},
	})
	n.mu.Lock()
	n.pods = append(slices.Clone(n.pods), p)
	n.mu.Unlock()
	n.poke()
	return p
}

func (p *Pod) must(err tcpip.Error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("gatewaytest: %s", err)
	}
}

func (p *Pod) close() {
	p.Stack.Destroy()
	p.link.Close()
}

func (p *Pod) owns(a netip.Addr) bool { return slices.Contains(p.addrs, a) }

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// DialTCP connects to dst.
func (p *Pod) DialTCP(ctx context.Context, dst netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, p.Stack, fullAddress(dst), protocolOf(dst.Addr()))
}

// DialTCPFrom connects from a port of the pod's choice.
func (p *Pod) DialTCPFrom(ctx context.Context, src, dst netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialTCPWithBind(ctx, p.Stack, fullAddress(src), fullAddress(dst), protocolOf(dst.Addr()))
}

// ListenTCP accepts connections at addr.
func (p *Pod) ListenTCP(addr netip.AddrPort) net.Listener {
	p.t.Helper()
	l, err := gonet.ListenTCP(p.Stack, fullAddress(addr), protocolOf(addr.Addr()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	return l
}

// DialUDP opens a socket that speaks with dst.
func (p *Pod) DialUDP(dst netip.AddrPort) *gonet.UDPConn {
	p.t.Helper()
	to := fullAddress(dst)
	c, err := gonet.DialUDP(p.Stack, nil, &to, protocolOf(dst.Addr()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// ListenUDP opens a socket at addr.
func (p *Pod) ListenUDP(addr netip.AddrPort) *gonet.UDPConn {
	p.t.Helper()
	at := fullAddress(addr)
	c, err := gonet.DialUDP(p.Stack, &at, nil, protocolOf(addr.Addr()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// Ping sends one echo request and returns the payload of the reply.
func (p *Pod) Ping(ctx context.Context, dst netip.Addr, payload []byte) ([]byte, error) {
	proto, request := icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if dst.Is6() {
		proto, request = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	var wq waiter.Queue
	ep, terr := p.Stack.NewEndpoint(proto, protocolOf(dst), &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	defer ep.Close()
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	to := fullAddress(netip.AddrPortFrom(dst, 0))
	message := append([]byte{request, 0, 0, 0, 0, 0, 0, 1}, payload...)
	if _, terr := ep.Write(bytes.NewReader(message), tcpip.WriteOptions{To: &to}); terr != nil {
		return nil, errors.New(terr.String())
	}
	select {
	case <-readable:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var reply bytes.Buffer
	if _, terr := ep.Read(&reply, tcpip.ReadOptions{}); terr != nil {
		return nil, errors.New(terr.String())
	}
	return reply.Bytes()[header.ICMPv4MinimumSize:], nil
}

// Refused reports whether err is what a reset gives.
func Refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String()
}
