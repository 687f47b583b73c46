package cni

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/cni/cnitest"
)

// TestBadCallsMakeNothing is case 70.
func TestBadCallsMakeNothing(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*invocation)
		code   uint
		says   string
	}{
		{"no JSON", func(c *invocation) { c.stdin = `{"cni` }, 6, ""},
		{"nothing on stdin", func(c *invocation) { c.stdin = "" }, 6, ""},
		{"no network name", func(c *invocation) { c.stdin = strings.Replace(c.stdin, `"net"`, `""`, 1) }, 7, "name"},
		{"a network name with a slash", func(c *invocation) { c.stdin = strings.Replace(c.stdin, `"net"`, `"../net"`, 1) }, 7, "name"},
		{"another type", func(c *invocation) { c.stdin = strings.Replace(c.stdin, "vswitch-cni", "bridge", 1) }, 7, "bridge"},
		{"a version of the future", func(c *invocation) { c.stdin = strings.Replace(c.stdin, "1.1.0", "2.0.0", 1) }, 1, ""},
		{"a version before ours", func(c *invocation) { c.stdin = strings.Replace(c.stdin, "1.1.0", "0.3.0", 1) }, 1, ""},
		{"a version that is none", func(c *invocation) { c.stdin = strings.Replace(c.stdin, `"1.1.0"`, `7`, 1) }, 6, ""},
		{"an unknown key", func(c *invocation) { c.stdin = h.conf(`,"bridge":"br0"`) }, 2, `"bridge": "br0"`},
		{"a relative socket", func(c *invocation) { c.stdin = h.conf(`,"socket":"vs.sock"`) }, 7, "vs.sock"},
		{"a daemon that is elsewhere", func(c *invocation) { c.stdin = h.conf(`,"socket":"/nowhere/vs.sock"`) }, 11, "/nowhere/vs.sock"},
		{"no command", func(c *invocation) { c.command = "PLUG" }, 4, "PLUG"},
		{"no container id", func(c *invocation) { c.id = "" }, 4, "CNI_CONTAINERID"},
		{"a container id with a path", func(c *invocation) { c.id = "../c1" }, 4, ""},
		{"a container id in other letters", func(c *invocation) { c.id = "\u0441" }, 4, ""},
		{"no interface name", func(c *invocation) { c.ifname = "" }, 4, "CNI_IFNAME"},
		{"an interface name of 16 bytes", func(c *invocation) { c.ifname = "eth0123456789abc" }, 4, ""},
		{"an interface name with a path", func(c *invocation) { c.ifname = "../eth0" }, 4, ""},
		{"an interface name that is a path", func(c *invocation) { c.ifname = ".." }, 4, ""},
		{"an interface name in other letters", func(c *invocation) { c.ifname = "\u0435th0" }, 4, "CNI_IFNAME"},
		{"an interface name for the kernel to number", func(c *invocation) { c.ifname = "eth%d" }, 4, "CNI_IFNAME"},
		{"the name of loopback", func(c *invocation) { c.ifname = "lo" }, 4, "CNI_IFNAME"},
		{"no namespace", func(c *invocation) { c.netns = "" }, 4, "CNI_NETNS"},
		{"a relative namespace", func(c *invocation) { c.netns = "ns" }, 4, "CNI_NETNS"},
		{"a namespace that isn't there", func(c *invocation) { c.netns = file + ".none" }, 8, "CNI_NETNS"},
		{"a file for a namespace", func(c *invocation) { c.netns = file }, 8, "CNI_NETNS"},
		{"another kind of namespace", func(c *invocation) { c.netns = "/proc/self/ns/uts" }, 8, "CNI_NETNS"},
		{"the node's own namespace", func(c *invocation) { c.netns = "/proc/self/ns/net" }, 8, "own"},
		{"arguments that are none", func(c *invocation) { c.args = "K8S_POD_NAME" }, 4, "CNI_ARGS"},
		{"an unknown argument", func(c *invocation) { c.args = "FOO=bar" }, 4, "FOO"},
		{"a pod name with a path", func(c *invocation) { c.args = "K8S_POD_NAME=../x" }, 4, "K8S_POD_NAME"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ownBefore, err := os.ReadFile("/proc/net/dev")
			if err != nil {
				t.Fatal(err)
			}
			c := h.good("ADD", "c1", n)
			tt.change(&c)
			sub := *h
			sub.t = t
			sub.fails(c, tt.code, tt.says)
			sub.wantClean(n)
			if ownAfter, _ := os.ReadFile("/proc/net/dev"); strings.Count(string(ownAfter), "\n") != strings.Count(string(ownBefore), "\n") {
				t.Errorf("the node's own namespace has other interfaces now:\n%s", ownAfter)
			}
		})
	}
	// The refusals left the pod usable, lo included.
	h.must(h.good("ADD", "c1", n))
	wantPings(t, n, "eth0")
}

// steps are the steps that a command takes, as it tells them itself.
func (h *host) steps(command string, n *cnitest.Netns) []string {
	h.t.Helper()
	log := filepath.Join(h.t.TempDir(), "steps")
	c := h.good(command, "c0", n)
	c.step = "log:" + log
	h.must(c)
	data, err := os.ReadFile(log)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// TestAFailingStepIsUndone: an ADD that fails needs no DEL.
func TestAFailingStepIsUndone(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	steps := h.steps("ADD", n)
	h.must(h.good("DEL", "c0", n))
	if len(steps) < 6 {
		t.Fatalf("steps %v", steps)
	}
	for _, s := range steps {
		c := h.good("ADD", "c1", n)
		c.step = "fail:" + s
		h.fails(c, 999, "failed for the test")
		h.wantClean(n)
	}
	h.must(h.good("ADD", "c1", n))
	wantPings(t, n, "eth0")
}

// TestWhatTheDaemonRefusesIsUndone: the same from the other side.
func TestWhatTheDaemonRefusesIsUndone(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	for _, tt := range []struct {
		method string
		err    error
		code   uint
		says   string
	}{
		{"AddPod", status.Error(codes.Internal, "out of order"), 999, "out of order"},
		{"AddPod", status.Error(codes.Unavailable, "closing"), 11, "closing"},
		{"AddPod", status.Error(codes.FailedPrecondition, "no pod CIDR yet"), 11, "no pod CIDR yet"},
		{"fds", errors.New("no worker for it"), 11, "no worker for it"},
	} {
		h.daemon.Fail(tt.method, tt.err)
		h.fails(h.good("ADD", "c1", n), tt.code, tt.says)
		h.daemon.Fail(tt.method, nil)
		h.wantClean(n)
	}
	h.must(h.good("ADD", "c1", n))
	wantPings(t, n, "eth0")
}

// TestResultThatCannotBeWrittenIsUndone: the runtime died, or its disk is full.
func TestResultThatCannotBeWrittenIsUndone(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, unread, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer unread.Close()
	for _, stdout := range []*os.File{full, unread} {
		if err := h.invokeInto(h.good("ADD", "c1", n), stdout); err == nil {
			t.Errorf("%s: success without a result", stdout.Name())
		}
		h.wantClean(n)
	}
}

// TestALeaseThatWasLostOnTheWay: the daemon leased, and its answer never came.
func TestALeaseThatWasLostOnTheWay(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	h.daemon.Fail("AddPod:after", status.Error(codes.Unavailable, "connection reset"))
	h.fails(h.good("ADD", "c1", n), 11, "connection reset")
	h.wantClean(n)
	// But an attachment that was there before is not this ADD's to remove.
	h.daemon.Fail("AddPod:after", nil)
	h.must(h.good("ADD", "c1", n))
	h.fails(h.good("ADD", "c1", cnitest.NewNetns(t)), errAttached, "")
	h.wantRecorded("c1")
}

// TestKilledAnywhere is case 71: SIGKILL ahead of every step of ADD and of DEL,
// then DEL, then ADD.
func TestKilledAnywhere(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	add := h.steps("ADD", n)
	del := h.steps("DEL", n)
	h.wantClean(n)
	recover := func(t *testing.T) {
		t.Helper()
		h.must(h.good("DEL", "c1", n))
		h.wantClean(n)
		h.must(h.good("ADD", "c1", n))
		wantPings(t, n, "eth0")
		if a := h.daemon.Attachments(); len(a) != 1 || a[0].GetIps()[0] != "10.244.1.2/32" {
			t.Errorf("recorded %v", a)
		}
		h.must(h.good("DEL", "c1", n))
		h.wantClean(n)
	}
	kill := func(t *testing.T, command, step string) {
		t.Helper()
		c := h.good(command, "c1", n)
		c.step = "kill:" + step
		if out, err := h.invoke(c); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s was not killed at %s: %s, %v", command, step, out, err)
		}
	}
	for _, s := range add {
		t.Run("ADD at "+s, func(t *testing.T) {
			kill(t, "ADD", s)
			recover(t)
		})
	}
	for _, s := range del {
		t.Run("DEL at "+s, func(t *testing.T) {
			h.must(h.good("ADD", "c1", n))
			kill(t, "DEL", s)
			recover(t)
		})
	}
	for _, s := range add {
		t.Run("ADD at "+s+", the daemon as well", func(t *testing.T) {
			kill(t, "ADD", s)
			h.daemon.Stop()
			h.must(h.good("DEL", "c1", n))
			h.daemon.Start()
			h.wantClean(n)
			recover(t)
		})
	}
}

// TestNothingElseIsDeleted: DEL without ADD meets an interface that isn't ours.
func TestNothingElseIsDeleted(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	err := n.Do(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"})
	})
	if err != nil {
		t.Fatal(err)
	}
	h.must(h.good("DEL", "c1", n))
	if names := linkNames(t, n); !slices.Contains(names, "eth0") {
		t.Errorf("interfaces %v", names)
	}
	c := h.good("DEL", "c1", n)
	c.netns = "/proc/self/ns/net"
	h.fails(c, 8, "own")
}
