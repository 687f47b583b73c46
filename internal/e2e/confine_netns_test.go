package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"vswitch/internal/lab"
)

// left is what every thread of a process still has (proc_pid_status(5)), and what kinds
// of descriptors it holds.
type left struct {
	status string
	kinds  []string
}

// None of the three can do more than this, as root on a node that has pods, services
// and an embedded store. Landlock is not seen in /proc: what it refuses is tried by
// internal/confine's own test.
var wantLeft = map[string]left{
	"keeper": {
		// CAP_NET_BIND_SERVICE is bit 10.
		status: "CapInh=0 CapPrm=400 CapEff=400 CapBnd=0 CapAmb=0 NoNewPrivs=1 Seccomp=2 Seccomp_filters=1",
		kinds:  []string{"/dev/net/tun", "affinity", "cgroup", "eventfd", "eventpoll", "flows", "log", "oom_score_adj", "pidfd", "pipe", "socket"},
	},
	"dataplane": {
		status: "CapInh=0 CapPrm=0 CapEff=0 CapBnd=0 CapAmb=0 NoNewPrivs=1 Seccomp=2 Seccomp_filters=2",
		kinds:  []string{"/dev/net/tun", "affinity", "cgroup", "eventfd", "eventpoll", "flows", "log", "null", "pipe", "socket", "state/lock"},
	},
	"store": {
		status: "CapInh=0 CapPrm=0 CapEff=0 CapBnd=0 CapAmb=0 NoNewPrivs=1 Seccomp=2 Seccomp_filters=2",
		kinds:  []string{"cgroup", "eventfd", "eventpoll", "null", "pipe", "socket", "state/store"},
	},
}

var statusLine = regexp.MustCompile(`(?m)^(Cap(?:Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp|Seccomp_filters):\s+0*([0-9a-f]+)$`)

// leftTo reads what a process has left; an error if its threads differ.
func leftTo(pid int, n *lab.Node) (left, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return left{}, fmt.Errorf("process %d: %d threads, %v", pid, len(tasks), err)
	}
	var l left
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		var fields []string
		for _, m := range statusLine.FindAllStringSubmatch(string(text), -1) {
			fields = append(fields, m[1]+"="+m[2])
		}
		status := strings.Join(fields, " ")
		if l.status == "" {
			l.status = status
		}
		if status != l.status {
			return left{}, fmt.Errorf("%s: %s, another thread of the process: %s", task, status, l.status)
		}
	}
	l.kinds, err = kindsOf(pid, n)
	return l, err
}

var anonymous = regexp.MustCompile(`^anon_inode:\[?([a-z]+)\]?$`)

// kindsOf says what a process's descriptors are, but for what it was born with: those
// that this process has as well.
func kindsOf(pid int, n *lab.Node) ([]string, error) {
	inherited, err := linksOf("self")
	if err != nil {
		return nil, err
	}
	links, err := linksOf(strconv.Itoa(pid))
	if err != nil {
		return nil, err
	}
	kinds := map[string]bool{}
	for to := range links {
		word, _, _ := strings.Cut(to, ":")
		in := func(dir string) bool { return strings.HasPrefix(to, dir+"/") }
		kind := to
		switch m := anonymous.FindStringSubmatch(to); {
		case m != nil:
			kind = m[1]
		case word == "socket" || word == "pipe":
			kind = word
		case inherited[to]:
			continue
		case in("/sys/fs/cgroup"): // the Go runtime's, to know its share of the processors
			kind = "cgroup"
		case to == fmt.Sprintf("/proc/%d/oom_score_adj", pid): // opened before it was confined
			kind = "oom_score_adj"
		case in(filepath.Join(n.StateDir(), "store")):
			kind = "state/store"
		case in(n.StateDir()):
			kind = "state/" + filepath.Base(to)
		case strings.HasPrefix(filepath.Base(to), "flows-"), strings.HasPrefix(filepath.Base(to), "affinity-"): // on a tmpfs
			kind, _, _ = strings.Cut(filepath.Base(to), "-")
		case in(filepath.Dir(filepath.Dir(n.StateDir()))): // what the lab has it write to
			kind = "log"
		}
		kinds[kind] = true
	}
	return slices.Sorted(maps.Keys(kinds)), nil
}

// linksOf are the descriptors of a process, as /proc names them.
func linksOf(process string) (map[string]bool, error) {
	entries, err := filepath.Glob("/proc/" + process + "/fd/*")
	if err != nil || len(entries) == 0 {
		return nil, fmt.Errorf("process %s: %d descriptors, %v", process, len(entries), err)
	}
	links := map[string]bool{}
	for _, e := range entries {
		if to, err := os.Readlink(e); err == nil { // else closed meanwhile
			links[to] = true
		}
	}
	return links, nil
}

// checkLeft holds a node's processes to the table.
func (c *cluster) checkLeft(when string, n *lab.Node) {
	c.t.Helper()
	dataplane, err := n.Dataplane()
	if err != nil {
		c.t.Fatal(err)
	}
	store, err := storePid(n)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, pid := range map[string]int{"keeper": n.Daemon().Pid(), "dataplane": dataplane, "store": store} {
		got, err := leftTo(pid, n)
		if err != nil {
			c.t.Errorf("%s: %s: %v", when, name, err)
			continue
		}
		want := wantLeft[name]
		if got.status != want.status {
			c.t.Errorf("%s: %s\nhas  %s\nwant %s", when, name, got.status, want.status)
		}
		for _, k := range got.kinds {
			if !slices.Contains(want.kinds, k) {
				c.t.Errorf("%s: %s holds a descriptor of the kind %s, want none but %v", when, name, k, want.kinds)
			}
		}
	}
}

// nextDataplane replaces a node's dataplane and waits for the next.
func (c *cluster) nextDataplane(n *lab.Node, replace func(pid int) error) {
	c.t.Helper()
	pid, err := n.Dataplane()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := replace(pid); err != nil {
		c.t.Fatal(err)
	}
	c.eventually("another dataplane", func() error {
		p, err := n.Dataplane()
		if err == nil && p == pid {
			err = fmt.Errorf("still process %d", pid)
		}
		if err != nil {
			return err
		}
		_, err = n.Vswitch(c.t.Context(), "", "ready")
		return err
	})
}

const lowService = `
apiVersion: v1
kind: Service
metadata: {name: low, namespace: default}
spec:
  type: LoadBalancer
  selector: {app: low}
  ports:
  - {name: tcp, port: 443, targetPort: 8080, protocol: TCP}
  - {name: udp, port: 443, targetPort: 8080, protocol: UDP}
`

// TestWhatTheDaemonHasLeft lists what root's daemon may still do, and has it bind ports
// below 1024 all the same: as first started, after the dataplane was killed, and after
// an upgrade, for ports from before and for new ones.
func TestWhatTheDaemonHasLeft(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0]
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	low := c.pod(0, "low", map[string]string{"app": "low"})
	serveName(t, low, 8080)
	var open []uint16 // host ports; each round adds one
	rounds := []struct {
		name    string
		replace func(pid int) error
	}{
		{"as started", nil},
		{"killed", func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }},
		{"upgraded", func(int) error {
			_, err := a.Vswitch(t.Context(), "", "upgrade")
			return err
		}},
	}
	for i, r := range rounds {
		if r.replace != nil {
			c.nextDataplane(a, r.replace)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		web, err := a.AddPod(ctx, lab.PodSpec{Name: fmt.Sprintf("web%d", i), Ports: []lab.PortMapping{
			{HostPort: 80 + i, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 80 + i, ContainerPort: 8080, Protocol: "udp"},
		}})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		serveName(t, web, 8080)
		open = append(open, uint16(80+i))
		if i == 0 {
			c.apply(lowService)
		}
		for _, port := range append([]uint16{443}, open...) {
			for _, network := range []string{"tcp", "udp"} {
				c.eventually(fmt.Sprintf("%s: %s port %d is open", r.name, network, port), func() error {
					said, err := ask(outside.Namespace, network, netip.AddrPortFrom(a.Underlay(), port), "who")
					if name, client := answer(said); err == nil && (client != outside.Underlay() || port == 443 && name != "low") {
						err = fmt.Errorf("%q", said)
					}
					return err
				})
			}
		}
		c.checkLeft(r.name, a)
	}
}

// TestResolversAreFollowedByAConfinedDaemon replaces the host's resolv.conf while the
// daemon runs, as resolvconf(8) and NetworkManager do: the file that it was confined to
// is another one then.
func TestResolversAreFollowedByAConfinedDaemon(t *testing.T) {
	need(t, "unshare")
	c := newNodes(t, lab.Config{})
	a := c.nodes[0]
	etc := t.TempDir()
	write := func(server string) {
		t.Helper()
		next := filepath.Join(etc, "resolv.conf.new")
		if err := os.WriteFile(next, []byte("nameserver "+server+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(etc, "resolv.conf")); err != nil {
			t.Fatal(err)
		}
	}
	write("198.51.100.53") // nobody is there
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := a.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Wrapper: []string{
		"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc && exec "$@"`, etc,
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.a1 = c.pod(0, "a1", nil)
	asked := make(chan string, 1000)
	serveResolver(t, a.Namespace, asked)
	write(resolverAddr.Addr().String())
	c.eventually("the new resolver is asked", func() error {
		m, err := askDNS(c.a1, c.dnsAddr(4), "udp", "www.example.com.", dns.TypeA)
		if err == nil && len(asked) == 0 {
			err = fmt.Errorf("answered %s, and the resolver was not asked", dns.RcodeToString[m.Rcode])
		}
		return err
	})
}
