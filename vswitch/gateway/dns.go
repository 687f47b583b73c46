package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/internal/share"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
)

// The node's own DNS server, at VIPs that no service has port 53 of. Pods' flows
// to it lead here (flow.Endpoint.Gateway). A question by UDP is answered with one
// datagram, past the netstack: a message is copied, answered by a goroutine that
// lives as long as its question does, and written. TCP ends in the netstack.
//
// Questions in progress and connections are shared out between pods (package
// share): one that floods finds half of the places, and leaves the other half.

// DNS answers messages of the domain name system (RFC 1035).
type DNS interface {
	// ServeDNS returns the answer to a pod's message, nil for none: by UDP one of
	// 1,232 bytes at most. It is called by many goroutines at once, may wait for
	// others' servers, and returns soon once ctx ends. The query is the callee's.
	ServeDNS(ctx context.Context, query []byte, pod netip.Addr, tcp bool) []byte
}

const (
	portDNS = 53

	dnsQueries     = 4096      // in progress, all pods: a goroutine each
	dnsConnections = 512       // all pods: a goroutine each
	dnsQueryBytes  = 4 << 10   // a question's length at most; names have 255 bytes
	dnsAnswerBytes = 1280 - 48 // by UDP: fits the smallest MTU, so that none needs fragments
	dnsBufferBytes = 80 << 10  // of a connection, each way: an answer has 64 KiB at most
	dnsIdleTicks   = 10 * ticksPerSec
)

type dnsServer struct {
	handler  DNS // nil: there is none
	addrs    []wire.Addr
	write    func(ip []byte) bool
	counters *counters
	ctx      context.Context

	queries     *share.Pool[wire.Addr]
	connections *share.Pool[wire.Addr]

	mu     sync.Mutex
	closed bool           // guarded by mu: nothing is added to work any more
	work   sync.WaitGroup // questions by UDP
}

func newDNSServer(g *Gateway) *dnsServer {
	d := &dnsServer{
		handler: g.cfg.DNS, write: g.link.WriteIP, counters: &g.counters, ctx: g.ctx,
		queries: share.New[wire.Addr](dnsQueries), connections: share.New[wire.Addr](dnsConnections),
	}
	if d.handler == nil {
		return d
	}
	for _, a := range g.cfg.DNSAddrs {
		d.addrs = append(d.addrs, wire.AddrFrom(a))
	}
	return d
}

// hasAddr reports whether the server has this address.
func (d *dnsServer) hasAddr(a *wire.Addr) bool { return slices.Contains(d.addrs, *a) }

// serves reports whether a flow to k's destination is the server's.
func (d *dnsServer) serves(k *flow.Key) bool {
	return k.DstPort == portDNS && (k.Proto == wire.ProtoUDP || k.Proto == wire.ProtoTCP) && d.hasAddr(&k.Dst)
}

// takes reports whether a packet is for the server.
func (d *dnsServer) takes(h *wire.Headers) bool {
	return h.DstPort == portDNS && h.HasL4 && d.hasAddr(&h.Dst)
}

// fromFrame takes a datagram as a switch worker has it: it doesn't wait.
func (d *dnsServer) fromFrame(f *frame.Frame, h *wire.Headers) drop.Reason {
	k := flow.KeyOf(h)
	payload := f.Bytes()[h.PayloadOff : h.L4Off+udpBytes(f, h)]
	each := len(payload)
	if f.VNet.IsGSO() {
		each = int(f.VNet.GSOSize)
	}
	for len(payload) > each {
		if r := d.fromPod(&k, payload[:each]); r != drop.None {
			return r
		}
		payload = payload[each:]
	}
	return d.fromPod(&k, payload)
}

// fromPod has one question answered. The payload is borrowed.
func (d *dnsServer) fromPod(k *flow.Key, payload []byte) drop.Reason {
	if len(payload) > dnsQueryBytes {
		return drop.TooBig
	}
	if !d.queries.Take(k.Src, 1) {
		d.counters.dnsCapped.Add(1)
		return drop.ConnectionCap
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.queries.Give(k.Src, 1)
		return drop.EgressDown
	}
	key, query := *k, bytes.Clone(payload)
	d.work.Go(func() {
		defer d.queries.Give(key.Src, 1)
		d.answer(&key, query)
	})
	return drop.None
}

func (d *dnsServer) answer(k *flow.Key, query []byte) {
	d.counters.dnsQueries.Add(1)
	answer := d.handler.ServeDNS(d.ctx, query, k.Src.Netip(), false)
	if answer == nil || len(answer) > dnsAnswerBytes {
		return
	}
	var ip [wire.IPv6Bytes + wire.UDPBytes + dnsAnswerBytes]byte
	// A full ring counts its losses; the pod asks again.
	d.write(ip[:wire.PutUDP(ip[:], &k.Dst, k.DstPort, &k.Src, k.SrcPort, answer)])
}

// close waits for the questions in progress, whose context has ended.
func (d *dnsServer) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.work.Wait()
}

// dnsConn is a pod's TCP connection to the server.
type dnsConn struct {
	*podConn
	g    *Gateway
	pod  wire.Addr
	used atomic.Uint32 // tick of the last message
}

func (c *dnsConn) touch() { c.used.Store(c.g.tick.Load()) }

// idle implements connection: a resolver keeps no connection for long that is not
// used (RFC 7766 section 6.2.3), nor one whose pod doesn't take its answers.
func (c *dnsConn) idle(tick, _, _ uint32) bool { return tick-c.used.Load() >= dnsIdleTicks }

func (c *dnsConn) backend() backend { return backend{} }

// serveDNS carries a pod's connection to the server from SYN to end.
func (g *Gateway) serveDNS(r *tcp.ForwarderRequest, k *flow.Key) {
	if !g.dns.connections.Take(k.Src, 1) {
		g.counters.dnsCapped.Add(1)
		r.Complete(true)
		return
	}
	defer g.dns.connections.Give(k.Src, 1)
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		return
	}
	ep.SocketOptions().SetReceiveBufferSize(dnsBufferBytes, true)
	ep.SocketOptions().SetSendBufferSize(dnsBufferBytes, true)
	g.usage.established(k)
	c := &dnsConn{podConn: newPodConn(ep, &wq), g: g, pod: k.Src}
	c.touch()
	defer c.close()
	if !g.connections.add(c) {
		c.abort()
		return
	}
	defer g.connections.remove(c)
	c.serve()
}

// serve answers one question after the other (RFC 7766 allows any order), until
// the pod has no more.
func (c *dnsConn) serve() {
	readable, writable := c.watch(waiter.ReadableEvents), c.watch(waiter.WritableEvents)
	defer readable.stop()
	defer writable.stop()
	for {
		query, err := c.message(readable)
		if err != nil {
			return
		}
		c.touch()
		c.g.counters.dnsQueries.Add(1)
		answer := c.g.dns.handler.ServeDNS(c.g.ctx, query, c.pod.Netip(), true)
		if answer == nil || len(answer) > 0xffff {
			c.abort()
			return
		}
		framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer))), answer...)
		c.touch()
		if c.write(framed, writable) != nil {
			return
		}
	}
}

// message reads one with its length before it (RFC 1035 section 4.2.2).
func (c *dnsConn) message(readable *eventWait) ([]byte, error) {
	var length [2]byte
	if err := c.fill(length[:], readable); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > dnsQueryBytes {
		c.abort()
		return nil, errReset
	}
	query := make([]byte, n)
	return query, c.fill(query, readable)
}

// fill waits for all of b. Only aborting the connection ends the wait early.
func (c *dnsConn) fill(b []byte, readable *eventWait) error {
	for len(b) > 0 {
		n, err := c.read(b)
		b = b[n:]
		switch err {
		case nil:
		case errWouldBlock:
			<-readable.ch
		default:
			return err
		}
	}
	return nil
}
