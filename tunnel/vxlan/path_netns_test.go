//go:build linux

package vxlan_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vswitch/internal/wiretest"
	"vswitch/tunnel/netnstest"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/frame"
)

// Two nodes with a router between them, whose far link becomes narrower while
// they talk:
//
//	node a .1 <-veth 1500-> .254 router .254 <-veth 1500, then less-> .1 node b
//
// The sender learns it from the router's ICMP error, sends no more than fits, and
// tries again when the report is old.
func TestPathBecomesNarrower(t *testing.T) {
	for _, tt := range []struct {
		name, a, routerA, b, routerB, bits, all string
		narrow                                  int
	}{
		{"IPv4 underlay", "192.0.2.1", "192.0.2.254", "198.51.100.1", "198.51.100.254", "/24", "0.0.0.0/0", 1400},
		{"IPv6 underlay", "2001:db8:a::1", "2001:db8:a::fe", "2001:db8:b::1", "2001:db8:b::fe", "/64", "::/0", 1420},
		{"forged or useless: below IPv6's minimum", "192.0.2.1", "192.0.2.254", "198.51.100.1", "198.51.100.254", "/24", "0.0.0.0/0", 700},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.RequireRoot(t)
			nodeA, router, nodeB := netnstest.New(t), netnstest.New(t), netnstest.New(t)
			netnstest.Do(t, router, func() error {
				for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
					if err := os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0); err != nil {
						return err
					}
				}
				return nil
			})
			netnstest.Veth(t, "near", 1500, router, tt.routerA+tt.bits, nodeA, tt.a+tt.bits)
			netnstest.Veth(t, "far", 1500, router, tt.routerB+tt.bits, nodeB, tt.b+tt.bits)
			underlayA, underlayB := netip.MustParseAddr(tt.a), netip.MustParseAddr(tt.b)
			var a, b *vxlan.Tunnel
			netnstest.Do(t, nodeA, func() (err error) {
				if err := gateway("near", tt.all, tt.routerA); err != nil {
					return err
				}
				a, err = vxlan.New(vxlan.Config{Underlays: []netip.Addr{underlayA}, MAC: macA, Offload: true})
				return err
			})
			defer a.Close()
			netnstest.Do(t, nodeB, func() (err error) {
				if err := gateway("far", tt.all, tt.routerB); err != nil {
					return err
				}
				b, err = vxlan.New(vxlan.Config{Underlays: []netip.Addr{underlayB}, MAC: macB, Offload: true})
				return err
			})
			defer b.Close()
			const lifetime = 300 * time.Millisecond
			a.SetPathLifetime(lifetime)
			setPeer(t, a, vxlan.Peer{ID: idB, Node: "b", Underlay: underlayB, MAC: macB})
			setPeer(t, b, vxlan.Peer{ID: idA, Node: "a", Underlay: underlayA, MAC: macA})

			overhead := vxlan.Overhead(underlayA)
			link := 1500 - overhead
			eventuallyDelivers(t, a, b, link) // once neighbours are found
			if got := a.PathMTU(idB); got != 0 {
				t.Fatalf("path MTU %d over the wide path", got)
			}
			netnstest.Do(t, router, func() error {
				far, err := netlink.LinkByName("far")
				if err != nil {
					return err
				}
				if tt.narrow < 1280 { // IPv6 would leave the link; the route does as well
					return netlink.RouteReplace(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: netlink.NewIPNet(underlayB.AsSlice()), MTU: tt.narrow})
				}
				return netlink.LinkSetMTU(far, tt.narrow)
			})
			want := max(tt.narrow-overhead, 1280)
			learn := func() {
				t.Helper()
				for deadline := time.Now().Add(5 * time.Second); a.PathMTU(idB) != want; {
					if time.Now().After(deadline) {
						t.Fatalf("path MTU %d after 5 s, want %d", a.PathMTU(idB), want)
					}
					delivers(t, a, b, link) // no longer; the answer to it is the router's
				}
			}
			learn()
			if tt.narrow >= 1280 {
				eventuallyDelivers(t, a, b, want)
			}
			setPeer(t, a, vxlan.Peer{ID: idB, Node: "b", Underlay: underlayB, MAC: macB})
			if got := a.PathMTU(idB); got != want && got != 0 { // 0: it has expired meanwhile
				t.Errorf("after the member was set again: path MTU %d, want %d", got, want)
			}
			for deadline := time.Now().Add(lifetime + 5*time.Second); a.PathMTU(idB) != 0; {
				if time.Now().After(deadline) {
					t.Fatal("the report does not expire")
				}
				time.Sleep(10 * time.Millisecond) // between two looks at the condition
			}
			learn()
			if s := a.Stats(); s.TooBig < 2 {
				t.Errorf("%d reports counted, want 2 or more", s.TooBig)
			}
		})
	}
}

func gateway(link, dst, via string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p := netip.MustParsePrefix(dst)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr(via).AsSlice()}
	if p.Addr().Is6() {
		r.Family = netlink.FAMILY_V6
	}
	return netlink.RouteAdd(r)
}

func eventuallyDelivers(t *testing.T, a, b *vxlan.Tunnel, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !delivers(t, a, b, n); {
		if time.Now().After(deadline) {
			t.Fatalf("a packet of %d bytes is not delivered within 10 s", n)
		}
	}
}

// delivers sends one packet of n bytes from a to b and reports whether it
// arrived within some time. a reads its socket in between, as its worker would.
func delivers(t *testing.T, a, b *vxlan.Tunnel, n int) bool {
	t.Helper()
	f := frame.New()
	f.Set(wiretest.Packet{Src: netip.MustParseAddr("10.244.1.5"), Dst: netip.MustParseAddr("10.244.2.5"), DontFragment: true,
		Proto: 17, SrcPort: 1, DstPort: 2, Payload: make([]byte, n-28)}.Frame())
	f.Peer = idB
	a.Queue(0).Transmit([]*frame.Frame{f})
	batch := frame.NewBatch(4)
	for deadline := time.Now().Add(50 * time.Millisecond); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, tun := range []*vxlan.Tunnel{a, b} {
			batch.Reset()
			if err := tun.Queue(0).Receive(batch); err != nil {
				t.Fatal(err)
			}
			for i := range batch.Len() {
				if tun == b && batch.At(i).Len() == n+14 {
					return true
				}
			}
		}
	}
	return false
}
