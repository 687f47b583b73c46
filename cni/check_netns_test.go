package cni

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vswitch/cni/cnitest"
	"vswitch/control/api"
)

// TestCheckFindsDamage is the CHECK part of case 72.
func TestCheckFindsDamage(t *testing.T) {
	onLink := func(f func(*netlink.Handle, netlink.Link) error) func(*host, *cnitest.Netns) error {
		return func(_ *host, n *cnitest.Netns) error {
			return n.Do(func(nl *netlink.Handle) error {
				link, err := nl.LinkByName("eth0")
				if err != nil {
					return err
				}
				return f(nl, link)
			})
		}
	}
	removeAddress := func(cidr string) func(*host, *cnitest.Netns) error {
		return onLink(func(nl *netlink.Handle, link netlink.Link) error {
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			return nl.AddrDel(link, addr)
		})
	}
	removeRoute := func(cidr string) func(*host, *cnitest.Netns) error {
		return onLink(func(nl *netlink.Handle, link netlink.Link) error {
			_, dst, err := net.ParseCIDR(cidr)
			if err != nil {
				return err
			}
			return nl.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst})
		})
	}
	for _, tt := range []struct {
		name   string
		damage func(*host, *cnitest.Netns) error
		code   uint // 0: none
		says   string
	}{
		{"none", func(*host, *cnitest.Netns) error { return nil }, 0, ""},
		{"no IPv4 address", removeAddress("10.244.1.2/32"), 100, "10.244.1.2"},
		{"no IPv6 address", removeAddress("fd00:10:244:1::2/128"), 100, "fd00:10:244:1::2"},
		{"no IPv4 default route", removeRoute("0.0.0.0/0"), 100, "0.0.0.0/0"},
		{"no IPv6 default route", removeRoute("::/0"), 100, "::/0"},
		{"no route to the IPv6 gateway", removeRoute("fe80::1/128"), 100, "fe80::1"},
		{"no neighbour", onLink(func(nl *netlink.Handle, link netlink.Link) error {
			mac, err := net.ParseMAC(cnitest.GatewayMAC)
			if err != nil {
				return err
			}
			return nl.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(cnitest.Gateway6), HardwareAddr: mac})
		}), 100, "neighbour fe80::1"},
		{"no TAP", onLink((*netlink.Handle).LinkDel), 100, "no such interface"},
		{"something else for the TAP", onLink(func(nl *netlink.Handle, link netlink.Link) error {
			if err := nl.LinkDel(link); err != nil {
				return err
			}
			return nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"})
		}), 100, "veth"},
		{"another MAC", onLink(func(nl *netlink.Handle, link netlink.Link) error {
			return nl.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		}), 100, "02:00:00:00:00:09"},
		{"another MTU", onLink(func(nl *netlink.Handle, link netlink.Link) error {
			return nl.LinkSetMTU(link, 1300)
		}), 100, "1300"},
		{"down", onLink((*netlink.Handle).LinkSetDown), 100, "down"},
		{"lo down", func(_ *host, n *cnitest.Netns) error {
			return n.Do(func(nl *netlink.Handle) error {
				lo, err := nl.LinkByName("lo")
				if err != nil {
					return err
				}
				return nl.LinkSetDown(lo)
			})
		}, 100, "lo"},
		{"no namespace", func(_ *host, n *cnitest.Netns) error { n.Remove(); return nil }, 8, "CNI_NETNS"},
		{"unknown to the daemon", func(h *host, _ *cnitest.Netns) error {
			h.daemon.Forget(api.AttachmentKey{Network: "net", ContainerID: "c1", Ifname: "eth0"})
			return nil
		}, 100, "does not know"},
		{"queues lost", func(h *host, _ *cnitest.Netns) error { h.daemon.Stop(); h.daemon.Start(); return nil }, 100, "queues"},
		{"no daemon", func(h *host, _ *cnitest.Netns) error { h.daemon.Stop(); return nil }, 11, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, cnitest.Config{})
			n := cnitest.NewNetns(t)
			result := h.must(h.good("ADD", "c1", n))
			if err := tt.damage(h, n); err != nil {
				t.Fatal(err)
			}
			c := h.good("CHECK", "c1", n)
			c.stdin = h.conf(`,"prevResult":` + result)
			if tt.code == 0 {
				h.must(c)
				return
			}
			h.fails(c, tt.code, tt.says)
		})
	}
}

// TestCheckAllowsWhatAnotherPluginDid, and says so in prevResult.
func TestCheckAllowsWhatAnotherPluginDid(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	result := h.must(h.good("ADD", "c1", n))
	err := n.Do(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := nl.LinkSetMTU(link, 1300); err != nil {
			return err
		}
		_, every, _ := net.ParseCIDR("::/0")
		return nl.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: every})
	})
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer(`"mtu":1400`, `"mtu":1300`, `{"dst":"::/0","gw":"fe80::1"}`, `{"dst":"2001:db8::/32","gw":"fe80::7"}`)
	c := h.good("CHECK", "c1", n)
	c.stdin = h.conf(`,"prevResult":` + changed.Replace(compact(t, result)))
	if !strings.Contains(c.stdin, "1300") || !strings.Contains(c.stdin, "fe80::7") {
		t.Fatalf("the result is written otherwise than this test thinks: %s", c.stdin)
	}
	// The replaced route is another plugin's to check.
	h.must(c)
}

func TestCheckNeedsAMatchingResult(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	result := h.must(h.good("ADD", "c1", n))
	for _, tt := range []struct {
		name, prev string
		code       uint
		says       string
	}{
		{"none", "", 7, "prevResult"},
		{"of another interface", strings.Replace(result, `"eth0"`, `"net1"`, 1), 7, "eth0"},
		{"of another address", strings.ReplaceAll(result, "10.244.1.2/32", "10.244.1.3/32"), 100, "10.244.1.3/32"},
		{"of another MAC", strings.ReplaceAll(result, "02:76:73:01:00:00", "02:76:73:01:00:07"), 100, "02:76:73:01:00:07"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := h.good("CHECK", "c1", n)
			if tt.prev != "" {
				c.stdin = h.conf(`,"prevResult":` + tt.prev)
			}
			h.fails(c, tt.code, tt.says)
		})
	}
}
