package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// pinger sends ICMP echo requests over a ping socket (Linux, icmp(7)): the
// kernel chooses the identifier and gives the socket its own answers only. It is
// connected, so that ICMP errors are its errors.
type pinger struct {
	net.Conn
	request  icmp.Type
	reply    icmp.Type
	protocol int
	in       []byte
}

func openPing(to netip.Addr) (*pinger, error) {
	p := &pinger{request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply, protocol: unix.IPPROTO_ICMP, in: make([]byte, 64<<10)}
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		family = unix.AF_INET6
		p.request, p.reply, p.protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, p.protocol)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("ping socket: %w: net.ipv4.ping_group_range keeps this group from it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("ping socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close() // FileConn has a duplicate
	if err := unix.Connect(fd, sa); err != nil {
		return nil, fmt.Errorf("ping %v: %w", to, err)
	}
	if p.Conn, err = net.FileConn(f); err != nil {
		return nil, fmt.Errorf("ping socket: %w", err)
	}
	return p, nil
}

func (p *pinger) echo(i uint64, size int) error {
	payload := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(payload, i)
	b, err := (&icmp.Message{Type: p.request, Body: &icmp.Echo{Seq: int(i & 0xffff), Data: payload}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := p.Write(b); err != nil {
		return err
	}
	p.SetReadDeadline(time.Now().Add(answerTimeout))
	for {
		n, err := p.Read(p.in)
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
