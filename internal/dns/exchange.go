package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Sockets is the Exchanger that asks over the host's sockets: a connected one for
// each query, so that its port is a new random one and the kernel drops what
// others send (RFC 5452 sections 9.2 and 10).
type Sockets struct{}

// Exchange implements Exchanger.
func (Sockets) Exchange(ctx context.Context, to netip.AddrPort, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	raw, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := dns.Conn{Conn: raw, UDPSize: MaxUDPBytes}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		r, err := c.ReadMsg()
		switch {
		case r != nil && err == nil && answers(r, q):
			return r, nil
		case err != nil && (tcp || isNetError(err)):
			return nil, err
		}
		// A datagram that is no answer to this: the right one may still come.
	}
}

// isNetError tells the socket's errors from those of reading a message.
func isNetError(err error) bool {
	_, ok := err.(net.Error)
	return ok
}
