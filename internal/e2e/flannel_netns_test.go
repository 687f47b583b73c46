package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// The other node is a kernel vxlan device set up as flannel does,
// known to vswitch by its v1.Node alone. Ping and TCP both ways, both families,
// and a service with its endpoint over there.
func TestKernelVXLANNode(t *testing.T) {
	need(t, "ping", "iperf3")
	l := labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)})
	ours, err := l.AddNode("ours")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.AddNode("kernel")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, lab: l, nodes: []*lab.Node{ours}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Flannel's v6 device uses the v6 underlay, so our node needs both.
	err = ours.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: []string{"--underlay", ours.Underlay4.String() + "," + ours.Underlay6.String()}})
	if err != nil {
		t.Fatal(err)
	}
	cidr4, cidr6 := netip.MustParsePrefix("10.244.77.0/24"), netip.MustParsePrefix("fd00:10:244:77::/64")
	kernel, err := other.Flannel(cidr4, cidr6, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.apply(kernel.NodeYAML())
	pod := c.pod(0, "pod", nil)
	if err := kernel.AddPeer(peerOf(t, ours)); err != nil {
		t.Fatal(err)
	}
	remote, err := kernel.AddPod()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			c.eventually("the kernel's pod answers", func() error { return ping(pod, remote.IP(family), 1) })
			if err := ping(pod, remote.IP(family), 100); err != nil {
				t.Error(err)
			}
			if err := remote.Ping(ctx, pod.IP(family), 100, 2*time.Millisecond); err != nil {
				t.Errorf("from the kernel's side: %v", err)
			}
			if r := iperf(t, pod.Namespace, remote.Namespace, remote.IP(family), "-n", "32M"); r.End.SumReceived.Bytes < 8<<20 {
				t.Errorf("to the kernel's pod: %v bytes", r.End.SumReceived.Bytes)
			}
			if r := iperf(t, remote.Namespace, pod.Namespace, pod.IP(family), "-n", "32M"); r.End.SumReceived.Bytes < 8<<20 {
				t.Errorf("from the kernel's pod: %v bytes", r.End.SumReceived.Bytes)
			}
			addr := netip.AddrPortFrom(remote.IP(family), 7100)
			listenTCP(t, remote.Namespace, addr, func(conn net.Conn) { io.Copy(conn, conn) })
			if got, err := ask(pod.Namespace, "tcp", addr, "over kernel VXLAN"); err != nil || got != "over kernel VXLAN" {
				t.Errorf("TCP echo: %q, %v", got, err)
			}
		})
	}
	for reason, n := range nodeDrops(t, ours) {
		t.Logf("dropped %d as %s", n, reason)
		if !expectedDrops[reason] {
			t.Errorf("%d frames dropped as %s", n, reason)
		}
	}
}

// peerOf is our node as a flannel node must know it, read as a user would.
func peerOf(t *testing.T, n *lab.Node) lab.FlannelPeer {
	t.Helper()
	var rows []struct {
		Name     string
		PodCIDRs []netip.Prefix
		VTEPMAC  string
	}
	get(t, n, "nodes", &rows)
	for _, r := range rows {
		if r.Name != n.Host {
			continue
		}
		mac, err := net.ParseMAC(r.VTEPMAC)
		if err != nil {
			t.Fatal(err)
		}
		p := lab.FlannelPeer{Underlay4: n.Underlay4, Underlay6: n.Underlay6, MAC4: mac, MAC6: mac}
		for _, cidr := range r.PodCIDRs {
			if cidr.Addr().Is4() {
				p.CIDR4 = cidr
			} else {
				p.CIDR6 = cidr
			}
		}
		return p
	}
	t.Fatalf("no node %s in %+v", n.Host, rows)
	return lab.FlannelPeer{}
}
