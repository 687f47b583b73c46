package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vswitch/cni/cnitest"
	"vswitch/internal/netif"
)

// TestSpecificationVersions is case 69's matrix: every version, through libcni.
func TestSpecificationVersions(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			h := newHost(t, cnitest.Config{})
			n := cnitest.NewNetns(t)
			ctx := context.Background()
			list := h.list(version)
			rt := &libcni.RuntimeConf{ContainerID: "c1", NetNS: n.Path, IfName: "eth0", Args: [][2]string{
				{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "web"}, {"K8S_POD_NAME", "front-0"}, {"K8S_POD_UID", "u1"},
			}}
			result, err := h.cni.AddNetworkList(ctx, list, rt)
			if err != nil {
				t.Fatal(err)
			}
			if result.Version() != version {
				t.Errorf("result of version %s", result.Version())
			}
			wantResult(t, result, n.Path)
			wantPings(t, n, "eth0")
			if a := h.daemon.Attachments(); len(a) != 1 || !a[0].GetAttached() ||
				a[0].GetPod().GetNamespace() != "web" || a[0].GetPod().GetName() != "front-0" || a[0].GetPod().GetUid() != "u1" {
				t.Errorf("recorded %v", a)
			}
			if version != "0.3.1" { // which has no CHECK
				if err := h.cni.CheckNetworkList(ctx, list, rt); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			if err := h.cni.GetStatusNetworkList(ctx, list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			for i := range 3 {
				if err := h.cni.DelNetworkList(ctx, list, rt); err != nil {
					t.Errorf("DEL %d: %v", i+1, err)
				}
			}
			h.wantClean(n)
		})
	}
}

// wantResult checks what ADD says of the first pod.
func wantResult(t *testing.T, result types.Result, sandbox string) {
	t.Helper()
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range r.Interfaces {
		got = append(got, fmt.Sprintf("interface %s %s %s", i.Name, i.Mac, i.Sandbox))
	}
	for _, ip := range r.IPs {
		got = append(got, fmt.Sprintf("ip %s via %s on %d", ip.Address.String(), ip.Gateway, *ip.Interface))
	}
	for _, route := range r.Routes {
		got = append(got, strings.TrimSuffix(fmt.Sprintf("route %s via %s", route.Dst.String(), route.GW), " via <nil>"))
	}
	want := []string{
		"interface eth0 02:76:73:01:00:00 " + sandbox,
		"ip 10.244.1.2/32 via 169.254.1.1 on 0",
		"ip fd00:10:244:1::2/128 via fe80::1 on 0",
		"route 169.254.1.1/32",
		"route 0.0.0.0/0 via 169.254.1.1",
		"route fe80::1/128",
		"route ::/0 via fe80::1",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("result\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	if !r.DNS.IsEmpty() {
		t.Errorf("dns %v", r.DNS)
	}
}

func TestVersionCommand(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	info, err := h.cni.GetVersionInfo(context.Background(), pluginType)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(info.SupportedVersions(), " "); got != "0.3.1 0.4.0 1.0.0 1.1.0" {
		t.Errorf("supported: %s", got)
	}
}

// TestInterfaceIsAsTheDaemonSaid looks at what pings don't show.
func TestInterfaceIsAsTheDaemonSaid(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config cnitest.Config
	}{
		{"with offloads", cnitest.Config{MTUBytes: 1392, Queues: 3, GSOMaxBytes: 60000, TxQueueFrames: 4321}},
		{"plain, one queue", cnitest.Config{MTUBytes: 8000, Queues: 1, Plain: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, tt.config)
			n := cnitest.NewNetns(t)
			h.must(h.good("ADD", "c1", n))
			wantPings(t, n, "eth0")
			err := n.Do(func(nl *netlink.Handle) error {
				link, err := nl.LinkByName("eth0")
				if err != nil {
					return err
				}
				a := link.Attrs()
				tun, ok := link.(*netlink.Tuntap)
				if !ok || tun.Mode != netlink.TUNTAP_MODE_TAP || tun.NonPersist {
					return fmt.Errorf("not a persistent TAP: %+v", link)
				}
				if qdiscs, err := nl.QdiscList(link); err != nil || len(qdiscs) != 1 || qdiscs[0].Type() != "noqueue" {
					t.Errorf("queueing disciplines %v (%v), want noqueue alone", qdiscs, err)
				}
				if tun.Queues != int(tt.config.Queues) {
					t.Errorf("%d queues, want %d", tun.Queues, tt.config.Queues)
				}
				if a.MTU != int(tt.config.MTUBytes) {
					t.Errorf("MTU %d, want %d", a.MTU, tt.config.MTUBytes)
				}
				if want := tt.config.GSOMaxBytes; want != 0 && (a.GSOMaxSize != want || a.GSOIPv4MaxSize != want) {
					t.Errorf("gso_max_size %d, for IPv4 %d, want %d", a.GSOMaxSize, a.GSOIPv4MaxSize, want)
				}
				if want := tt.config.TxQueueFrames; want != 0 && a.TxQLen != int(want) {
					t.Errorf("txqueuelen %d, want %d", a.TxQLen, want)
				}
				addrs, err := nl.AddrList(link, netlink.FAMILY_ALL)
				if err != nil {
					return err
				}
				if len(addrs) != 2 { // and so no link-local one
					t.Errorf("addresses %v", addrs)
				}
				for _, addr := range addrs {
					if addr.Flags&unix.IFA_F_TENTATIVE != 0 {
						t.Errorf("%v is tentative", addr)
					}
				}
				for key, want := range map[string]string{"accept_ra": "0", "disable_ipv6": "0"} {
					if got, err := os.ReadFile(netif.IPv6Sysctl("eth0", key)); err != nil || strings.TrimSpace(string(got)) != want {
						t.Errorf("%s is %q, %v, want %s", key, got, err, want)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestIPv6SwitchedOffByTheRuntime: some runtimes set disable_ipv6 for every
// interface of a new namespace.
func TestIPv6SwitchedOffByTheRuntime(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	err := n.Do(func(*netlink.Handle) error {
		return errors.Join(
			os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", "all", "disable_ipv6"), []byte("1"), 0),
			os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", "default", "disable_ipv6"), []byte("1"), 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	h.must(h.good("ADD", "c1", n))
	wantPings(t, n, "eth0")
}

func TestPodWithoutIPv6(t *testing.T) {
	h := newHost(t, cnitest.Config{NoIPv6: true, MTUBytes: 600})
	n := cnitest.NewNetns(t)
	out := h.must(h.good("ADD", "c1", n))
	if strings.Contains(out, "fe80") {
		t.Errorf("result with IPv6: %s", out)
	}
	for _, to := range []string{"127.0.0.1", "::1", cnitest.Gateway4} {
		if err := ping(n, "eth0", to); err != nil {
			t.Errorf("ping %s: %v", to, err)
		}
	}
}

func TestLabelsReachTheDaemon(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	c := h.good("ADD", "c1", cnitest.NewNetns(t))
	c.stdin = h.conf(`,"args":{"cni":{"labels":[{"key":"app","value":"web"}]}}`)
	h.must(c)
	a := h.daemon.Attachments()
	if len(a) != 1 || a[0].GetPod().GetLabels()["app"] != "web" || a[0].GetPod().GetName() != "c1" || a[0].GetPod().GetNamespace() != "default" {
		t.Errorf("recorded %v", a)
	}
}

// TestDuplicates: what is refused leaves alone what is there.
func TestDuplicates(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n, other := cnitest.NewNetns(t), cnitest.NewNetns(t)
	h.must(h.good("ADD", "c1", n))
	h.fails(h.good("ADD", "c1", n), 4, "eth0")             // the name is taken
	h.fails(h.good("ADD", "c1", other), errAttached, "c1") // and so is the attachment
	h.fails(h.good("ADD", "c2", n), 4, "eth0")             // whoever asks
	if a := h.daemon.Attachments(); len(a) != 1 || !a[0].GetAttached() {
		t.Errorf("recorded %v", a)
	}
	wantPings(t, n, "eth0") // unharmed
	h.must(h.good("DEL", "c1", n))
	h.wantClean(n, other)
}

// TestSecondInterface: with addresses alone and no subnet a pod can have only one
// interface of ours. The other is refused, and nothing of it stays.
func TestSecondInterface(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	h.must(h.good("ADD", "c1", n))
	second := h.good("ADD", "c1", n)
	second.ifname = "eth1"
	h.fails(second, 999, "file exists")
	h.wantRecorded("c1")
	if names := linkNames(t, n); strings.Join(names, " ") != "lo eth0" {
		t.Errorf("interfaces %v", names)
	}
	wantPings(t, n, "eth0")
}
