package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
)

// The demo of an ordinary user, who has no power over this machine's network:
//
//	the user, no capability, in this machine's network namespace:
//	    node a ── 127.0.0.1 ── node b        a client and a server "outside"
//	      |                      |
//	root of the user's namespace, which has no power outside it:
//	    pods client, web-a      pods visitor, web-b
//
// The program runs twice. The first run starts the nodes and has no privilege at all;
// the second, its child, is root of a user namespace, where it makes the pods and runs
// the plugin, which passes their devices on to the nodes. Nodes speak to each other
// by loopback, and who is outside has this machine's own address, so that no packet
// leaves the machine.

// nodesEnv tells the second run, in JSON, of the nodes that the first has started.
const nodesEnv = "VSWITCH_DEMO_NODES"

// lowPortOffset is vswitch's default.
const lowPortOffset = 10000

// startedNode is a node whose daemon runs.
type startedNode struct {
	Name     string
	Underlay netip.Addr
	Socket   string
}

// RunRootless is the demo of an ordinary user. The first run, which returns what the
// second found as its exit code, has first set.
func RunRootless(ctx context.Context, cfg Config) (r Result, code int, first bool, err error) {
	if lab.InUserNamespace() {
		if _, _, err := lab.EnterUserNamespace(lab.SameNetwork); err != nil {
			return r, 1, false, err
		}
		r, err = run(ctx, cfg, buildRootless)
		return r, 0, false, err
	}
	if err := errors.Join(ordinary(os.Geteuid(), "/proc/self/status"), cfg.check()); err != nil {
		return r, 1, true, err
	}
	code, err = startNodes(ctx, cfg)
	return r, code, true, err
}

// ordinary is an error for a process that is not an ordinary user's.
func ordinary(euid int, status string) error {
	if euid == 0 {
		return errors.New(`ROOTLESS=1 shows what an ordinary user's nodes do, and this is root. Run it as a user:
    su USER -c 'make demo ROOTLESS=1'
or, without an account, as one that owns nothing:
    setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all env HOME=/ TMPDIR=/tmp bin/vswitch-demo --rootless`)
	}
	text, err := os.ReadFile(status)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if set = strings.TrimSpace(set); strings.Trim(set, "0") != "" {
				return fmt.Errorf("demo: this process has capabilities (%s), and ROOTLESS=1 shows what works without any: run it without, as by setpriv --ambient-caps=-all --inh-caps=-all", set)
			}
			return nil
		}
	}
	return fmt.Errorf("demo: %s: no line CapEff: want Linux's", status)
}

// startNodes runs the nodes, and the rest in a second run.
func startNodes(ctx context.Context, cfg Config) (code int, err error) {
	if len(ownAddrs().list()) == 0 {
		return 1, errors.New("demo: this machine has no address beside loopback, at which somebody outside could meet a node; want one, if only on a dummy interface")
	}
	l, err := cfg.newLab()
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	fmt.Fprintf(cfg.Out, "Starting two nodes as user %d, without capabilities, in this machine's own network namespace\n", os.Geteuid())
	started, err := cluster(ctx, l, cfg.Out)
	if err != nil {
		return 1, fmt.Errorf("%w\n%s", err, l.Failures(20))
	}
	text, err := json.Marshal(started)
	if err != nil {
		return 1, fmt.Errorf("demo: %w", err)
	}
	if err := os.Setenv(nodesEnv, string(text)); err != nil {
		return 1, fmt.Errorf("demo: %w", err)
	}
	code, _, err = lab.EnterUserNamespace(lab.SameNetwork)
	if code != 0 {
		fmt.Fprintf(cfg.Out, "\nWhat the nodes said last:\n%s", l.Failures(30))
	}
	return code, err
}

// cluster runs two nodes on loopback.
func cluster(ctx context.Context, l *lab.Lab, out io.Writer) ([]startedNode, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no cluster within %v", timeout))
	defer cancel()
	var nodes []*lab.Node
	for _, name := range []string{"a", "b"} {
		n, err := l.AddHere(name, netip.AddrFrom4([4]byte{127, 0, 0, 1}), "")
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	if err := lab.RunCluster(ctx, nodes); err != nil {
		return nil, err
	}
	var started []startedNode
	for _, n := range nodes {
		dataplane, err := n.Dataplane()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(out, "  node %s: pid %d, its dataplane %d, socket %s\n", n.Host, n.Daemon().Pid(), dataplane, n.Socket())
		started = append(started, startedNode{Name: n.Host, Underlay: n.Underlay(), Socket: n.Socket()})
	}
	return started, nil
}

// buildRootless is build in the second run.
func buildRootless(ctx context.Context, l *lab.Lab, self string) (*network, error) {
	var started []startedNode
	if err := json.Unmarshal([]byte(os.Getenv(nodesEnv)), &started); err != nil || len(started) != 2 {
		return nil, fmt.Errorf("demo: $%s is %q (%v): want what the first run of this program says there", nodesEnv, os.Getenv(nodesEnv), err)
	}
	own := ownAddrs()
	n := &network{
		self: self, outside: l.Here("outside"), door: own,
		stranger: own, world: own, egress: own, noEcho: !mayPing(),
	}
	for i, at := range []**lab.Node{&n.a, &n.b} {
		var err error
		if *at, err = l.AddHere(started[i].Name, started[i].Underlay, started[i].Socket); err != nil {
			return nil, err
		}
	}
	var err error
	if n.worldPort, err = freePort(own, serverPort, 1024); err != nil {
		return nil, err
	}
	if n.nodePort, err = freePort(own, nodePort, 2048); err != nil {
		return nil, err
	}
	// Port 80 is open at itself where the machine lets anybody have it.
	if n.lowPort = servicePort; !isFree(own, servicePort) {
		n.lowPort = servicePort + lowPortOffset
	}
	return n, n.populate(ctx)
}

// ownAddrs are this machine's addresses, one a family, that are neither loopback's nor
// link-local.
func ownAddrs() (d dual) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return d
	}
	for _, x := range addrs {
		n, ok := x.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(n.IP)
		switch a = a.Unmap(); {
		case !ok || !a.IsGlobalUnicast():
		case a.Is4() && !d.v4.IsValid():
			d.v4 = a
		case a.Is6() && !d.v6.IsValid():
			d.v6 = a
		}
	}
	return d
}

// freePort is the first of n ports that is nobody's, over TCP and UDP, at each address.
func freePort(at dual, first uint16, n int) (uint16, error) {
	for port := first; port < first+uint16(n); port++ {
		if isFree(at, port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("demo: no port from %d on is free at %v", first, at.list())
}

func isFree(at dual, port uint16) bool {
	for _, a := range at.list() {
		place := netip.AddrPortFrom(a, port).String()
		tcp, err := net.Listen("tcp", place)
		if err != nil {
			return false
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", place)
		if err != nil {
			return false
		}
		udp.Close()
	}
	return true
}

// mayPing reports whether this user's processes may open ping sockets, as the nodes'
// must to carry pods' pings on.
func mayPing() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
