package demo_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab/labtest"
)

// output is what a process says, while it runs.
type output struct {
	mu  sync.Mutex
	all bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

// rootlessPatience is more than the demo takes on a machine that is busy.
const rootlessPatience = 2 * time.Minute

var startedLine = regexp.MustCompile(`(?m)^  node ([ab]): pid (\d+), its dataplane (\d+), socket (\S+)$`)

// podLine is how one enters a pod: by a process of the user namespace, and the path
// that the pod's network namespace has there.
var podLine = regexp.MustCompile(`(?m)^  (\S+) +\S+ +\S+ +nsenter -t (\d+) -U .* nsenter --net=(\S+) bash$`)

// TestNodesOfAnOrdinaryUser is the whole promise: two nodes without any capability in
// the machine's own network namespace, and every kind of traffic.
func TestNodesOfAnOrdinaryUser(t *testing.T) {
	own := ownAddrs(t)
	if len(own) == 0 {
		t.Skip("this machine has no address beside loopback, at which somebody outside could meet a node")
	}
	cmd := asUser(t, "--rootless", "--keep")
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for it and its children
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // its children die with it

	deadline := time.After(rootlessPatience)
	for !strings.Contains(out.String(), "Press ^C") {
		select {
		case err := <-ended:
			t.Fatalf("ended before it was done: %v\n%s", err, out)
		case <-deadline:
			t.Fatalf("not done in time:\n%s", out)
		case <-time.After(20 * time.Millisecond):
		}
	}
	nodes := startedLine.FindAllStringSubmatch(out.String(), -1)
	if len(nodes) != 2 {
		t.Fatalf("%d nodes started, want 2:\n%s", len(nodes), out)
	}
	pids := map[string]string{"the demo": strconv.Itoa(cmd.Process.Pid)}
	for _, n := range nodes {
		pids["the keeper of "+n[1]], pids["the dataplane of "+n[1]] = n[2], n[3]
	}
	for who, pid := range pids {
		mustBeOrdinary(t, who, pid)
	}
	pods := podLine.FindAllStringSubmatch(out.String(), -1)
	if len(pods) != 4 {
		t.Errorf("%d pods, want 4", len(pods))
	}
	for _, p := range pods {
		mustBeTheUsers(t, p[1], p[2], p[3])
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil || !lastLine.MatchString(out.String()) {
			t.Errorf("demo: %v\n%s", err, out)
		}
	case <-deadline:
		t.Fatalf("did not end in time:\n%s", out)
	}
	for who, pid := range pids {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			t.Errorf("%s, process %s, is there still", who, pid)
		}
	}
	for _, n := range nodes {
		if _, err := os.Stat(n[4]); err == nil {
			t.Errorf("the socket %s is there still", n[4])
		}
	}
	for _, want := range rootlessRows(own) {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no row like %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// TestWhatTheMachineAllowsIsUsed: where anybody may ping and open low ports, pods' pings
// are answered and port 80 is open at itself.
func TestWhatTheMachineAllowsIsUsed(t *testing.T) {
	if !labtest.Long() {
		t.Skip("the whole demo once more: in the long form of the tests")
	}
	demo := asUser(t, "--rootless")
	const machine = `ip link set lo up && ip addr add 198.51.100.7/32 dev lo && ip addr add 2001:db8:7::7/128 dev lo nodad &&
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start && echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range && exec "$@"`
	out, err := exec.Command("unshare", append([]string{"-n", "sh", "-c", machine, "sh"}, demo.Args...)...).CombinedOutput()
	if err != nil || !lastLine.Match(out) {
		t.Errorf("demo: %v", err)
	}
	for _, want := range append(rootlessRows([]netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:7::7")}),
		`(?m)^ok +outside to hostPort 80 +IPv4 +tcp .*at port 80;`, `(?m)^ok +outside to hostPort 80 +IPv6 +udp .*at port 80;`,
		`(?m)^ok +pod to outside +IPv4 +ping +\d+ us$`, `(?m)^ok +pod to outside +IPv6 +ping +\d+ us$`) {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no row like %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// rootlessRows are patterns of the rows that there must be on a machine with these addresses.
func rootlessRows(own []netip.Addr) []string {
	rows := []string{`(?m)^ok +NodePort goes and comes `}
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, r := range []struct{ path, protocol, note string }{
			{"container to container", "tcp", ""},
			{"pod to pod, same node", "ping", ""},
			{"pod to pod, across nodes", "udp", "web-b saw"},
			{"pod to ClusterIP", "udp", "web-a saw .*, web-b saw"},
			{"pod to service name", "tcp", "web-a saw .*, web-b saw"},
		} {
			rows = append(rows, fmt.Sprintf(`(?m)^ok +%s +%s +%s .*%s`, r.path, family, r.protocol, r.note))
		}
	}
	for _, a := range own {
		family, said := "IPv4", regexp.QuoteMeta(a.String())
		if a.Is6() {
			family = "IPv6"
		}
		for _, protocol := range []string{"tcp", "udp"} {
			rows = append(rows,
				fmt.Sprintf(`(?m)^ok +outside to NodePort +%s +%s .*web-a saw %[3]s, web-b saw %[3]s$`, family, protocol, said),
				fmt.Sprintf(`(?m)^ok +outside to hostPort 80 +%s +%s .*at port \d+;.* visitor saw %s$`, family, protocol, said),
				fmt.Sprintf(`(?m)^ok +pod to outside +%s +%s .*outside saw %s$`, family, protocol, said))
		}
		rows = append(rows, fmt.Sprintf(`(?m)^ok +pod to outside +%s +ping `, family))
	}
	return rows
}

// mustBeOrdinary wants a process of the ordinary user's, without capabilities, in this
// process's own network and user namespaces.
func mustBeOrdinary(t *testing.T, who, pid string) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Errorf("%s: %v", who, err)
		return
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if fields[set] != "0000000000000000" {
			t.Errorf("%s has %s %q", who, set, fields[set])
		}
	}
	if want := strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d\t", ordinaryUser), 4)); fields["Uid"] != want {
		t.Errorf("%s runs as %q, want %q", who, fields["Uid"], want)
	}
	for _, ns := range []string{"net", "user"} {
		its, err1 := os.Readlink("/proc/" + pid + "/ns/" + ns)
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil || its != ours {
			t.Errorf("%s is in %s (%v), not in this machine's own %s (%v)", who, its, err1, ours, err2)
		}
	}
}

// mustBeTheUsers wants a pod's network namespace to belong to the user namespace of a
// process, and that to be one in which root is the ordinary user.
func mustBeTheUsers(t *testing.T, pod, pid, path string) {
	t.Helper()
	f, err := os.Open("/proc/" + pid + "/root" + path)
	if err != nil {
		t.Errorf("pod %s: %v", pod, err)
		return
	}
	defer f.Close()
	owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Errorf("pod %s: %v", pod, err)
		return
	}
	defer unix.Close(owner)
	var its, users unix.Stat_t
	err = errors.Join(unix.Fstat(owner, &its), unix.Stat("/proc/"+pid+"/ns/user", &users))
	if err != nil || its.Ino != users.Ino {
		t.Errorf("pod %s belongs to user namespace %d, not %d (%v)", pod, its.Ino, users.Ino, err)
	}
	uids, err := os.ReadFile("/proc/" + pid + "/uid_map")
	if want := fmt.Sprintf("0 %d 1", ordinaryUser); err != nil || strings.Join(strings.Fields(string(uids)), " ") != want {
		t.Errorf("pod %s is in a user namespace with uids %q (%v), want %q", pod, uids, err, want)
	}
}

// ownAddrs are this machine's first addresses of each family that are neither
// loopback's nor link-local.
func ownAddrs(t *testing.T) []netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var own []netip.Addr
	has := map[bool]bool{}
	for _, x := range all {
		p, err := netip.ParsePrefix(x.String())
		if a := p.Addr(); err == nil && a.IsGlobalUnicast() && !has[a.Is6()] {
			has[a.Is6()] = true
			own = append(own, a)
		}
	}
	return own
}

func TestRootIsToldToBeAnOrdinaryUser(t *testing.T) {
	labtest.NeedRoot(t)
	out, err := exec.Command(labtest.BinDir(t)+"/vswitch-demo", "--rootless").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("this is root")) || !bytes.Contains(out, []byte("setpriv")) {
		t.Errorf("%v: %s", err, out)
	}
}
