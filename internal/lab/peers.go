package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Networks of other people's programs, to compare with: Open vSwitch's
// user-space datapath, kube-proxy's nftables rules, and the user-mode networks
// slirp4netns and pasta. The programs are Debian's; none needs its service.

// OVSNetdev makes pods in one subnet, each joined by veth to one bridge of Open
// vSwitch's user-space datapath (datapath_type=netdev). Its daemons run in a
// namespace of their own, with their sockets and database in the lab's
// directory. The process returned is the one that switches: it polls.
func (l *Lab) OVSNetdev(ctx context.Context, pods, mtuBytes int) ([]*KernelPod, *Process, error) {
	space, err := l.NewNamespace("ovs")
	if err != nil {
		return nil, nil, err
	}
	if err := space.up("lo"); err != nil {
		return nil, nil, err
	}
	subnet4, subnet6 := netip.MustParsePrefix("10.240.0.0/24"), netip.MustParsePrefix("fd00:10:240::/64")
	var made []*KernelPod
	vsctl := []string{"add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"}
	for i := range pods {
		p, err := l.NewNamespace(fmt.Sprintf("opod%d", i+1))
		if err != nil {
			return nil, nil, err
		}
		port := fmt.Sprintf("veth%d", i+1)
		kp := &KernelPod{Namespace: p, IPv4: host(subnet4, i+1), IPv6: host(subnet6, i+1)}
		err = errors.Join(p.up("lo"), p.noDAD(), p.AllowPing(), connect(p, "eth0", space, port, mtuBytes, OffloadDefault))
		if err != nil {
			return nil, nil, err
		}
		// This datapath completes no checksum and cuts no super-frame that comes
		// over a packet socket, so the pods' kernels must.
		if _, err := p.Exec(ctx, Command{Path: "ethtool", Args: []string{"-K", "eth0", "tx", "off", "tso", "off", "gso", "off"}}); err != nil {
			return nil, nil, err
		}
		err = errors.Join(p.address("eth0", netip.PrefixFrom(kp.IPv4, subnet4.Bits())), p.address("eth0", netip.PrefixFrom(kp.IPv6, subnet6.Bits())))
		if err != nil {
			return nil, nil, err
		}
		made = append(made, kp)
		vsctl = append(vsctl, "--", "add-port", "br0", port)
	}
	p, err := space.startOVS(ctx, vsctl)
	return made, p, err
}

// startOVS starts Open vSwitch's two daemons in the namespace and has them do
// what vsctl says. The lab ends them, by pid.
func (n *Namespace) startOVS(ctx context.Context, vsctl []string) (*Process, error) {
	const schema = "/usr/share/openvswitch/vswitch.ovsschema"
	db, socket := n.lab.path("ovs.db"), "unix:"+n.lab.path("ovs.sock")
	if _, err := n.Exec(ctx, Command{Path: "ovsdb-tool", Args: []string{"create", db, schema}}); err != nil {
		return nil, err
	}
	env := []string{"OVS_RUNDIR=" + n.lab.Dir, "OVS_LOGDIR=" + n.lab.Dir, "OVS_DBDIR=" + n.lab.Dir, "OVS_SYSCONFDIR=" + n.lab.Dir}
	server, err := n.Start(Command{Path: "ovsdb-server", Env: env, Args: []string{db, "--remote=p" + socket, "--unixctl=" + n.lab.path("ovsdb.ctl")}})
	if err != nil {
		return nil, err
	}
	run := func(args ...string) error {
		_, err := n.Exec(ctx, Command{Path: "ovs-vsctl", Env: env, Args: append([]string{"--timeout=10", "--db=" + socket}, args...)})
		return err
	}
	if err := waitFor(ctx, server, func() bool { return exists(n.lab.path("ovs.sock")) }); err != nil {
		return nil, err
	}
	if err := run("--no-wait", "init"); err != nil {
		return nil, err
	}
	p, err := n.Start(Command{Path: "ovs-vswitchd", Env: env, Args: []string{socket, "--unixctl=" + n.lab.path("ovs.ctl")}})
	if err != nil {
		return nil, err
	}
	return p, run(vsctl...) // returns once ovs-vswitchd has done it
}

// waitFor waits until done says so, or the process has ended.
func waitFor(ctx context.Context, p *Process, done func() bool) error {
	for !done() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.done:
			return fmt.Errorf("lab: %s ended (%s):\n%s", p.Name, p.state(), p.Tail(20))
		case <-ctx.Done():
			return fmt.Errorf("lab: waiting for %s: %w:\n%s", p.Name, context.Cause(ctx), p.Tail(20))
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// RouteAll makes a pod send everything to its node, its neighbours on the bridge
// included, as it must where the node rewrites addresses: answers have to come
// back the same way. (The other way to have that is br_netfilter, at a price.)
func (f *Flannel) RouteAll(p *KernelPod) error {
	link, err := p.link("eth0")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.IPv4, f.CIDR4.Bits()))}
	if err := p.nl.AddrDel(link, addr); err != nil {
		return fmt.Errorf("lab: %s: %w", p.Name, err)
	}
	return errors.Join(
		p.address("eth0", netip.PrefixFrom(p.IPv4, 32)),
		p.route(netip.MustParsePrefix("0.0.0.0/0"), host(f.CIDR4, 1), "eth0", true),
		// A better way, the kernel would tell the pods, is the direct one.
		f.Node.Sysctl("net.ipv4.conf.all.send_redirects", "0"),
		f.Node.Sysctl("net.ipv4.conf.br0.send_redirects", "0"))
}

// KubeProxy makes a service of one endpoint, TCP and UDP, with the rules that
// kube-proxy (1.31 and later, --proxy-mode=nftables) writes for it, less the
// chains of features nobody uses here.
func (f *Flannel) KubeProxy(ctx context.Context, service, endpoint netip.AddrPort) error {
	_, err := f.Node.Exec(ctx, Command{Path: "nft", Args: []string{"-f", "-"}, Stdin: bytes.NewReader(kubeProxyRules(f.CIDR4, service, endpoint))})
	return err
}

// kubeProxyRules are the rules of pkg/proxy/nftables in Kubernetes.
func kubeProxyRules(cluster netip.Prefix, service, endpoint netip.AddrPort) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `table ip kube-proxy {
	set cluster-ips { type ipv4_addr; elements = { %s } }
	set nodeport-ips { type ipv4_addr; }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain mark-for-masquerade { meta mark set meta mark | 0x4000; }
	chain masquerading {
		meta mark & 0x4000 == 0 return
		meta mark set meta mark ^ 0x4000
		masquerade fully-random
	}
	chain reject-chain { reject; }
	chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
	chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain cluster-ips-check { ip daddr @cluster-ips reject; }
`, service.Addr())
	var elements []string
	for _, proto := range []string{"tcp", "udp"} {
		fmt.Fprintf(&b, `	chain endpoint-%[1]s {
		ip saddr %[4]s jump mark-for-masquerade
		meta l4proto %[1]s dnat to %[5]s
	}
	chain service-%[1]s {
		ip daddr %[2]s %[1]s dport %[3]d ip saddr != %[6]s jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-%[1]s }
	}
`, proto, service.Addr(), service.Port(), endpoint.Addr(), endpoint, cluster)
		elements = append(elements, fmt.Sprintf("%s . %s . %d : goto service-%s", service.Addr(), proto, service.Port(), proto))
	}
	fmt.Fprintf(&b, `	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { %s } }
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain filter-prerouting { type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }
	chain filter-input { type filter hook input priority 0; ct state new jump service-endpoints-check; }
	chain filter-forward { type filter hook forward priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
	chain filter-output { type filter hook output priority 0; ct state new jump service-endpoints-check; ct state new jump firewall-check; }
	chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
`, strings.Join(elements, ", "))
	return b.Bytes()
}

// UserMode says what a user-mode network is to be like.
type UserMode struct {
	MTUBytes int
	// TCPPort and UDPPort of the node lead to the same ports inside; 0: none do.
	TCPPort, UDPPort int
}

// Slirp4netns makes a namespace whose way outside is slirp4netns, run on the node.
func (n *Node) Slirp4netns(ctx context.Context, c UserMode) (*Namespace, error) {
	api := n.lab.path(n.Host + "-slirp4netns.sock")
	pod, err := n.userMode(ctx, "slirp4netns", func(path string) []string {
		return []string{"--netns-type=path", "--configure", "--disable-host-loopback", "--api-socket", api, "--mtu=" + strconv.Itoa(c.MTUBytes), path, "eth0"}
	})
	if err != nil {
		return nil, err
	}
	for protocol, port := range map[string]int{"tcp": c.TCPPort, "udp": c.UDPPort} {
		if port == 0 {
			continue
		}
		if err := slirpForward(api, protocol, port); err != nil {
			return nil, err
		}
	}
	return pod, nil
}

// slirpForward has slirp4netns open a port (its API socket takes one request a
// connection, slirp4netns(1)).
func slirpForward(api, protocol string, port int) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: api, Net: "unix"})
	if err != nil {
		return fmt.Errorf("lab: slirp4netns: %w", err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, `{"execute": "add_hostfwd", "arguments": {"proto": %q, "host_port": %[2]d, "guest_port": %[2]d}}`, protocol, port)
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("lab: slirp4netns: %w", err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("lab: slirp4netns: open %s port %d: %w", protocol, port, err)
	}
	if !bytes.Contains(answer, []byte(`"return"`)) {
		return fmt.Errorf("lab: slirp4netns: open %s port %d: it said %q, want a \"return\"", protocol, port, answer)
	}
	return nil
}

// Pasta makes a namespace whose way outside is pasta, run on the node. It gets an
// address of its own: by default pasta gives it the node's, and then the node itself
// can't be reached from inside.
func (n *Node) Pasta(ctx context.Context, c UserMode) (*Namespace, error) {
	ports := func(port int) string {
		if port == 0 {
			return "none"
		}
		return strconv.Itoa(port)
	}
	return n.userMode(ctx, "pasta", func(path string) []string {
		return []string{"--foreground", "--quiet", "--config-net", "--ipv4-only", "--no-map-gw", "--mtu", strconv.Itoa(c.MTUBytes), "--ns-ifname", "eth0", "--runas", "0:0",
			"--address", "10.0.2.100", "--netmask", "24", "--gateway", "10.0.2.2",
			"--tcp-ports", ports(c.TCPPort), "--udp-ports", ports(c.UDPPort), "--tcp-ns", "none", "--udp-ns", "none", "--netns-only", "--netns", path}
	})
}

// userMode starts a user-mode network on the node for a namespace of its own, and
// waits until that has its address.
func (n *Node) userMode(ctx context.Context, program string, args func(path string) []string) (*Namespace, error) {
	pod, err := n.lab.NewNamespace(n.Host + "-" + program)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(pod.up("lo"), pod.noDAD()); err != nil {
		return nil, err
	}
	p, err := n.Start(Command{Path: program, Args: args(pod.Path)})
	if err != nil {
		return nil, err
	}
	return pod, waitFor(ctx, p, func() bool {
		link, err := pod.nl.LinkByName("eth0")
		if err != nil {
			return false
		}
		addrs, err := pod.nl.AddrList(link, netlink.FAMILY_V4)
		return err == nil && len(addrs) > 0
	})
}
