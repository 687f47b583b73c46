package cni

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"vswitch/cni/cnitest"
)

// wantPings pings, from inside a pod, the gateways and an address behind them,
// and both loopback addresses.
func wantPings(t *testing.T, n *cnitest.Netns, ifname string) {
	t.Helper()
	for _, to := range []string{"127.0.0.1", "::1", cnitest.Gateway4, cnitest.Gateway6, "192.0.2.1", "2001:db8::1"} {
		if err := ping(n, ifname, to); err != nil {
			t.Errorf("ping %s: %v", to, err)
		}
	}
}

func ping(n *cnitest.Netns, ifname, to string) error {
	return n.Do(func(h *netlink.Handle) error {
		addr := &net.IPAddr{IP: net.ParseIP(to)}
		network, local, protocol := "ip4:icmp", "0.0.0.0", 1
		var request icmp.Type = ipv4.ICMPTypeEcho
		var reply icmp.Type = ipv4.ICMPTypeEchoReply
		if addr.IP.To4() == nil {
			network, local, protocol = "ip6:ipv6-icmp", "::", 58
			request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
		}
		if addr.IP.IsLinkLocalUnicast() && addr.IP.To4() == nil {
			link, err := h.LinkByName(ifname)
			if err != nil {
				return err
			}
			addr.Zone = fmt.Sprint(link.Attrs().Index) // a name would be looked up outside
		}
		c, err := icmp.ListenPacket(network, local) // on this thread
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		id := os.Getpid() & 0xffff
		m := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("vswitch")}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, addr); err != nil {
			return err
		}
		for buf := make([]byte, 1500); ; {
			size, _, err := c.ReadFrom(buf)
			if err != nil {
				return err
			}
			got, err := icmp.ParseMessage(protocol, buf[:size])
			if err != nil {
				return err
			}
			if echo, ok := got.Body.(*icmp.Echo); ok && got.Type == reply && echo.ID == id && string(echo.Data) == "vswitch" {
				return nil
			}
		}
	})
}
