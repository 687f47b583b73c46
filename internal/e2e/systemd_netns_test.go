package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
)

const (
	unit     = "vswitch.service" // the daemon's
	conflist = "/etc/cni/net.d/10-vswitch.conflist"
)

// machine is a node that systemd runs, with the package on it.
type machine struct {
	*lab.System
	c    *cluster
	node *lab.Node
}

// systemdRoot holds the systemd to test with, and the rest of a Debian: this machine, or
// what debootstrap made of another release.
func systemdRoot() string { return cmp.Or(os.Getenv("VSWITCH_SYSTEMD_ROOT"), "/") }

// boot starts systemd on a node.
func (c *cluster) boot(node *lab.Node) *machine {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	began := time.Now()
	s, err := node.Boot(ctx, systemdRoot())
	if err != nil {
		c.t.Fatal(err)
	}
	m := &machine{s, c, node}
	version, _, _ := strings.Cut(m.do("systemctl", "--version"), "\n")
	c.t.Logf("node %s: %s is up within %v", node.Host, version, time.Since(began))
	c.t.Cleanup(func() {
		if c.t.Failed() {
			said, err := s.Exec(context.Background(), "journalctl", "--no-pager", "--lines=80", "--output=short-precise")
			c.t.Logf("the journal of node %s: %v\n%s", node.Host, err, said)
		}
	})
	return m
}

// do runs a program on it, which must succeed.
func (m *machine) do(program string, args ...string) string {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(m.c.t.Context(), patience)
	defer cancel()
	out, err := m.Exec(ctx, program, args...)
	if err != nil {
		m.c.t.Fatalf("node %s: %s %q: %v %s", m.node.Host, program, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// install puts a package there, by its maintainer scripts too.
func (m *machine) install(deb string) {
	m.c.t.Helper()
	b, err := os.ReadFile(deb)
	if err != nil {
		m.c.t.Fatal(err)
	}
	writeFile(m.c.t, m.Path("/tmp/vswitch.deb"), b, 0o644)
	m.do("dpkg", "--install", "/tmp/vswitch.deb")
}

// configure writes what the daemon is to read.
func (m *machine) configure(lines ...string) {
	m.c.t.Helper()
	writeFile(m.c.t, m.Path("/etc/vswitch/config.yaml"), []byte(strings.Join(lines, "\n")), 0o600)
}

// property of the daemon's unit, as systemctl shows it.
func (m *machine) property(name string) string {
	m.c.t.Helper()
	return m.do("systemctl", "show", "--value", "--property="+name, unit)
}

// up waits until the daemon is up and has its pods' queues, whoever brought them.
func (m *machine) up() {
	m.c.t.Helper()
	m.c.eventually("the unit is up on node "+m.node.Host, func() error {
		if state := m.property("SubState"); state != "running" {
			return fmt.Errorf("it is %s", state)
		}
		var pods []struct{ Name, Node, State string }
		ctx, cancel := context.WithTimeout(m.c.t.Context(), patience)
		defer cancel()
		if err := m.node.Get(ctx, "pods", &pods); err != nil {
			return err
		}
		for _, p := range pods {
			if p.Node == m.node.Host && p.State != "attached" {
				return fmt.Errorf("pod %s is %s", p.Name, p.State)
			}
		}
		return nil
	})
}

// TestUnderSystemd installs the package on two machines that a real systemd runs, whose
// units make a cluster of them, and ends, kills, reloads and upgrades the daemon of one under
// traffic: systemd's descriptor store has all that must outlive it, and no connection is
// lost. Then it is stopped and started, misconfigured, and purged.
func TestUnderSystemd(t *testing.T) {
	if err := lab.NoSystemd(systemdRoot()); err != nil {
		t.Skip(err)
	}
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skipf("installs a Debian package: %v", err)
	}
	need(t, "nsenter", "ip", "ping")
	c := newNodes(t, lab.Config{})
	a, b := c.boot(c.nodes[0]), c.boot(c.nodes[1])
	before, err := a.Changed()
	if err != nil {
		t.Fatal(err)
	}
	deb, newer := debianPackage(t, "1.0"), debianPackage(t, "1.1")
	began := time.Now()
	for _, m := range []*machine{b, a} {
		m.install(deb)
		if state := m.property("UnitFileState") + " " + m.property("SubState"); state != "disabled dead" {
			t.Errorf("once installed the unit is %q", state)
		}
		store := []string{"store: etcd=" + b.node.StoreURL()}
		if m == b {
			store = []string{"store: embedded", "listen-client: " + b.node.StoreURL()}
		}
		m.configure(append(store, "insecure: true", "confine: trap")...)
		m.do("systemctl", "enable", "--now", unit, "vswitch-attend.service")
		m.up()
	}
	t.Logf("installed and started within %v", time.Since(began))
	c.eventually("the plugin's configuration is there", func() error {
		_, err := os.Stat(a.Path(conflist))
		return err
	})
	c.a1 = c.pod(0, "a1", nil)
	near, far := c.pod(0, "near", map[string]string{"app": "witness"}), c.pod(1, "far", nil)
	for _, p := range []*lab.Pod{near, far} {
		echo(t, p, 7)
	}
	c.eventually("the nodes know each other", func() error { return ping(c.a1, far.IP(6), 1) })
	a.confined()

	c.apply(witnessService)
	vip := c.service("witness")
	monitor, err := c.a1.Start(lab.Command{Name: "monitor", Path: "ip", Args: []string{"-o", "monitor", "link", "address", "route"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	watches := []*watch{
		newWatch(t, "to another node", c.a1.Namespace, netip.AddrPortFrom(far.IP(6), 7)),
		newWatch(t, "from another node", far.Namespace, netip.AddrPortFrom(near.IP(4), 7)),
	}
	load := newSteady(c, "a service", c.a1, near, netip.AddrPortFrom(vip.ip(4), steadyPort))
	kept := a.property("NFileDescriptorStore")
	for _, r := range []struct {
		name              string
		do                func()
		keeper, dataplane bool // stay
	}{
		{"systemctl restart", func() { a.do("systemctl", "restart", unit) }, false, false},
		{"all processes killed", func() { a.do("systemctl", "kill", "--signal=KILL", unit) }, false, false},
		{"the keeper killed", func() { a.do("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit) }, false, false},
		{"systemctl reload", func() { a.do("systemctl", "reload", unit) }, true, false},
		{"SIGHUP", func() { a.do("systemctl", "kill", "--signal=HUP", "--kill-who=main", unit) }, true, false},
		{"another version installed", func() { a.install(newer) }, true, false},
		{"systemd itself replaced", func() { a.do("systemctl", "daemon-reexec") }, true, true},
		{"all processes killed again", func() { a.do("systemctl", "kill", "--signal=KILL", unit) }, false, false},
	} {
		keeper, dataplane := a.property("MainPID"), a.dataplane()
		began := time.Now()
		r.do()
		c.eventually("the dataplane after "+r.name, func() error {
			if p := a.dataplane(); p == 0 || (p == dataplane) != r.dataplane {
				return fmt.Errorf("process %d, before %d", p, dataplane)
			}
			return nil
		})
		a.up()
		took := time.Since(began).Round(time.Millisecond)
		if same := a.property("MainPID") == keeper; same != r.keeper {
			t.Errorf("%s: the same keeper: %v, want %v", r.name, same, r.keeper)
		}
		if n := a.property("NFileDescriptorStore"); n != kept {
			t.Errorf("%s: systemd keeps %s descriptors, and kept %s", r.name, n, kept)
		}
		laps(ctx, t, watches, fmt.Sprintf("%s, of %v", r.name, took))
	}
	load.end()
	if err := monitor.Stop(); err != nil {
		t.Fatal(err)
	}
	if said := monitor.Log(); said != "" {
		t.Errorf("a pod saw its interface change:\n%s", said)
	}
	t.Logf("systemd keeps %s descriptors of 2 pods and the host", kept)

	// What is stopped leaves nothing with systemd, and is given the queues of its pods by who
	// attends it.
	a.do("systemctl", "stop", unit)
	if n := a.property("NFileDescriptorStore"); n != "0" {
		t.Errorf("stopped, with %s descriptors kept", n)
	}
	a.do("systemctl", "start", unit)
	a.up()
	laps(ctx, t, watches, "stopped and started")

	// More failures than systemd lets a unit have by default.
	config, err := os.ReadFile(a.Path("/etc/vswitch/config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	a.configure("stoore: embedded")
	if _, err := a.Exec(ctx, "systemctl", "reload", unit); err == nil {
		t.Error("systemctl reload succeeds with a configuration that can't be read")
	}
	dataplane := a.dataplane()
	a.install(deb) // its reload is refused as well, and the package is there all the same
	a.up()
	if a.dataplane() != dataplane {
		t.Error("another dataplane, with a configuration that can't be read")
	}
	laps(ctx, t, watches, "a reload that was refused")
	if _, err := a.Exec(ctx, "systemctl", "restart", unit); err == nil {
		t.Error("systemctl restart succeeds with a configuration that can't be read")
	}
	c.eventually("the unit is tried again", func() error {
		if n, err := strconv.Atoi(a.property("NRestarts")); err != nil || n < 6 {
			return fmt.Errorf("%d times, %w", n, err)
		}
		return nil
	})
	a.configure(string(config))
	a.up()
	laps(ctx, t, watches, "misconfigured and mended")

	for _, p := range []*lab.Pod{c.a1, near, far} {
		if err := p.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, m := range []*machine{a, b} {
		for line := range strings.Lines(m.do("journalctl", "--no-pager", "--output=short-precise")) {
			if strings.Contains(line, "SIGSYS") || strings.Contains(line, "level=ERROR") && !strings.Contains(line, "restart refused") {
				t.Errorf("node %s: %s", m.node.Host, line)
			}
		}
	}
	a.do("dpkg", "--remove", "vswitch")
	if _, err := os.Stat(a.Path(conflist)); err == nil {
		t.Error("the configuration of a plugin that is gone was left")
	}
	if _, err := os.Stat(a.Path("/var/lib/vswitch")); err != nil {
		t.Errorf("a package that is removed, not purged, took the node's state with it: %v", err)
	}
	a.do("dpkg", "--purge", "vswitch")
	a.leftNothing(before)
}

// dataplane is the child of the unit's main process, by its number inside; 0: there is
// none, or a second is about to take its place.
func (m *machine) dataplane() int {
	m.c.t.Helper()
	main := m.property("MainPID")
	children, err := filepath.Glob(m.Path("/proc/" + main + "/task/*/children"))
	if err != nil {
		m.c.t.Fatal(err)
	}
	var found []int
	for _, f := range children {
		pids, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(pids)) {
			args, _ := os.ReadFile(m.Path("/proc/" + pid + "/cmdline"))
			if n, err := strconv.Atoi(pid); err == nil && strings.HasPrefix(string(args), "/usr/bin/vswitch\x00run\x00") {
				found = append(found, n)
			}
		}
	}
	if len(found) != 1 {
		return 0
	}
	return found[0]
}

// confined looks at what systemd leaves to the daemon's processes.
func (m *machine) confined() {
	t := m.c.t
	t.Helper()
	for _, pid := range []string{m.property("MainPID"), strconv.Itoa(m.dataplane())} {
		status, err := os.ReadFile(m.Path("/proc/" + pid + "/status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(status), want+"\n") {
				t.Errorf("process %s: want %q in\n%s", pid, want, status)
			}
		}
		mounts, err := os.ReadFile(m.Path("/proc/" + pid + "/mountinfo"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); f[4] == "/" && !slices.Contains(strings.Split(f[5], ","), "ro") {
				t.Errorf("process %s may write to /: %s", pid, line)
			}
		}
		if _, err := os.Stat(m.Path("/proc/" + pid + "/root/dev/net/tun")); err == nil {
			t.Errorf("process %s has /dev/net/tun", pid)
		}
	}
}

// leftNothing compares a machine with what it was before the package came.
func (m *machine) leftNothing(before map[string]bool) {
	t := m.c.t
	t.Helper()
	after, err := m.Changed()
	if err != nil {
		t.Fatal(err)
	}
	// The package manager's own, and a directory that a container runtime may be watching.
	others := []string{"/var/lib/dpkg/", "/var/cache/", "/var/log/", "/etc/cni/net.d/"}
	for name := range after {
		if !before[name] && !slices.ContainsFunc(others, func(dir string) bool {
			return strings.HasPrefix(name, dir) || strings.HasPrefix(dir, name+"/")
		}) {
			t.Errorf("left, or gone that was there: %s", name)
		}
	}
	if _, err := os.Stat(m.Path(conflist)); err == nil {
		t.Errorf("left: %s", conflist)
	}
	for _, dir := range []string{"/run/vswitch", "/var/lib/vswitch"} {
		if _, err := os.Stat(m.Path(dir)); err == nil {
			t.Errorf("left: %s", dir)
		}
	}
	if links := m.do("ip", "-o", "link"); strings.Contains(links, "vswitch0") {
		t.Errorf("left:\n%s", links)
	}
	if units := m.do("systemctl", "list-units", "--all", "--plain", "--no-legend", "vswitch*"); units != "" {
		t.Errorf("left:\n%s", units)
	}
}
