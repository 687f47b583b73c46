package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// pinger sends ICMP echo requests over a ping socket (Linux, icmp(7)): the
// kernel chooses the identifier and gives the socket its own answers only.
type pinger struct {
	conn     *icmp.PacketConn
	to       net.Addr
	request  icmp.Type
	reply    icmp.Type
	protocol int
	in       []byte
}

func openPing(to netip.Addr) (*pinger, error) {
	p := &pinger{
		to:      &net.UDPAddr{IP: to.AsSlice(), Zone: to.Zone()},
		request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply, protocol: unix.IPPROTO_ICMP,
		in: make([]byte, 64<<10),
	}
	network, any := "udp4", "0.0.0.0"
	if to.Is6() {
		network, any = "udp6", "::"
		p.request, p.reply, p.protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_ICMPV6
	}
	conn, err := icmp.ListenPacket(network, any)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("ping socket: %w: net.ipv4.ping_group_range keeps this group from it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("ping socket: %w", err)
	}
	p.conn = conn
	return p, nil
}

func (p *pinger) Close() error { return p.conn.Close() }

func (p *pinger) echo(i uint64, size int) error {
	payload := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(payload, i)
	b, err := (&icmp.Message{Type: p.request, Body: &icmp.Echo{Seq: int(i & 0xffff), Data: payload}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := p.conn.WriteTo(b, p.to); err != nil {
		return err
	}
	p.conn.SetReadDeadline(time.Now().Add(answerTimeout))
	for {
		n, _, err := p.conn.ReadFrom(p.in)
		if err != nil {
			return timeout(err)
		}
		m, err := icmp.ParseMessage(p.protocol, p.in[:n])
		if err != nil {
			return err
		}
		e, ok := m.Body.(*icmp.Echo)
		if m.Type != p.reply || !ok || len(e.Data) < 8 {
			continue
		}
		if binary.BigEndian.Uint64(e.Data) < i {
			continue // a late answer to an earlier request
		}
		if !bytes.Equal(e.Data, payload) {
			return errors.New("what came back is not what was sent")
		}
		return nil
	}
}
