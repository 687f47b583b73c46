package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
	"vswitch/internal/userns"
)

// talk sends a line from one namespace to another over TCP and back.
func talk(t *testing.T, from, to *lab.Namespace, addr netip.Addr) {
	t.Helper()
	var ln net.Listener
	err := to.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	err = from.Do(func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprint(c, "there and back"); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		if err == nil && string(got) != "there and back" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
	if err != nil {
		t.Errorf("from %s to %s: %v", from.Name, addr, err)
	}
}

func left(t *testing.T, suffix string) []string {
	t.Helper()
	var found []string
	for _, glob := range []string{"/run/netns/*", filepath.Join(os.TempDir(), "vs*")} {
		names, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if strings.Contains(n, suffix) {
				found = append(found, n)
			}
		}
	}
	return found
}

func TestNodesReachEachOtherAndTheWorld(t *testing.T) {
	l := labtest.New(t, lab.Config{})
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AddNode("b")
	if err != nil {
		t.Fatal(err)
	}
	outside, err := l.Outside()
	if err != nil {
		t.Fatal(err)
	}
	talk(t, a.Namespace, b.Namespace, b.Underlay4)
	talk(t, b.Namespace, a.Namespace, a.Underlay6)
	talk(t, a.Namespace, outside.Namespace, lab.World4)
	talk(t, b.Namespace, outside.Namespace, lab.World6)
}

func TestUnderlayOfOneFamilyHasNoAddressOfTheOther(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cfg    lab.Config
		v4, v6 bool
	}{
		{name: "IPv4 only", cfg: lab.Config{NoIPv6: true}, v4: true},
		{name: "IPv6 only", cfg: lab.Config{NoIPv4: true}, v6: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := labtest.New(t, tt.cfg)
			n, err := l.AddNode("a")
			if err != nil {
				t.Fatal(err)
			}
			if n.Underlay4.IsValid() != tt.v4 || n.Underlay6.IsValid() != tt.v6 {
				t.Errorf("underlay addresses %v and %v", n.Underlay4, n.Underlay6)
			}
			if !n.Underlay().IsValid() {
				t.Error("no underlay address at all")
			}
		})
	}
}

func TestKernelBridgeJoinsPods(t *testing.T) {
	l := labtest.New(t, lab.Config{})
	pods, err := l.KernelBridge(2, 1500)
	if err != nil {
		t.Fatal(err)
	}
	talk(t, pods[0].Namespace, pods[1].Namespace, pods[1].IPv4)
	talk(t, pods[1].Namespace, pods[0].Namespace, pods[0].IPv6)
}

func TestFlannelNodesCarryPods(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  lab.Config
		mtu  int
	}{
		{name: "on an underlay of both families", mtu: 1430},
		{name: "on an IPv4 underlay", cfg: lab.Config{NoIPv6: true}, mtu: 1450},
		{name: "on an IPv6 underlay", cfg: lab.Config{NoIPv4: true}, mtu: 1430},
		{name: "on an underlay of wire-sized packets", cfg: lab.Config{Offload: lab.OffloadWire}, mtu: 1430},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := labtest.New(t, tt.cfg)
			a, b, err := l.AddPair("a", "b")
			if err != nil {
				t.Fatal(err)
			}
			fa, err := a.Flannel(netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64"), 0)
			if err != nil {
				t.Fatal(err)
			}
			fb, err := b.Flannel(netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64"), 0)
			if err != nil {
				t.Fatal(err)
			}
			if fa.MTUBytes != tt.mtu {
				t.Errorf("MTU %d, want %d", fa.MTUBytes, tt.mtu)
			}
			if err := errors.Join(fa.AddPeer(fb.Peer()), fb.AddPeer(fa.Peer())); err != nil {
				t.Fatal(err)
			}
			pa, err := fa.AddPod()
			if err != nil {
				t.Fatal(err)
			}
			pb, err := fb.AddPod()
			if err != nil {
				t.Fatal(err)
			}
			talk(t, pa.Namespace, pb.Namespace, pb.IPv4)
			talk(t, pb.Namespace, pa.Namespace, pa.IPv6)
		})
	}
}

func TestOffloadIsWhatWasAskedFor(t *testing.T) {
	for _, tt := range []struct {
		offload lab.Offload
		tso     bool
	}{{lab.OffloadWire, false}, {lab.OffloadFull, true}} {
		t.Run(tt.offload.String(), func(t *testing.T) {
			l := labtest.New(t, lab.Config{Offload: tt.offload})
			a, _, err := l.AddPair("a", "b")
			if err != nil {
				t.Fatal(err)
			}
			on, err := a.Features("eth0")
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp_tnl-segmentation", "tx-udp-segmentation", "tx-generic-segmentation"} {
				if got, ok := on[f]; !ok || got != tt.tso {
					t.Errorf("%s is %t (known: %t), want %t", f, got, ok, tt.tso)
				}
			}
			if !on["rx-gro"] {
				t.Error("rx-gro is off, want on")
			}
		})
	}
}

func TestProcessRunsInsideTheNamespaceAndItsOutputIsKept(t *testing.T) {
	l := labtest.New(t, lab.Config{})
	n, err := l.NewNamespace("one")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := n.Exec(ctx, lab.Command{Path: "readlink", Args: []string{"/proc/self/ns/net"}})
	if err != nil {
		t.Fatal(err)
	}
	var want string
	if err := n.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	here, _ := os.Readlink("/proc/self/ns/net")
	if got := strings.TrimSpace(string(out)); got != want || got == here {
		t.Errorf("child is in %s; namespace is %s; test is in %s", got, want, here)
	}

	p, err := n.Start(lab.Command{Name: "talker", Path: "sh", Args: []string{"-c", "echo ready now; exec sleep 60"}})
	if err != nil {
		t.Fatal(err)
	}
	if line, err := p.WaitLog(ctx, regexp.MustCompile("ready")); err != nil || line != "ready now" {
		t.Errorf("WaitLog: %q, %v", line, err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}

	_, err = n.Exec(ctx, lab.Command{Path: "sh", Args: []string{"-c", "echo oh no >&2; exit 3"}})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "oh no") {
		t.Errorf("failed command: %v", err)
	}
	p, err = n.Start(lab.Command{Name: "silent", Path: "true"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitLog(ctx, regexp.MustCompile("ready")); err == nil {
		t.Error("WaitLog on a process that ended without the line: no error")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	labtest.NeedRoot(t)
	l, err := lab.New(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = l.AddNode("a"); err != nil {
		t.Fatal(err)
	}
	n := l.Nodes()[0]
	// A process that ignores SIGTERM would cost five seconds; a child that does
	// not die with its parent must go as well.
	p, err := n.Start(lab.Command{Name: "family", Path: "sh", Args: []string{"-c", "sleep 300 & echo child $!; wait"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	line, err := p.WaitLog(ctx, regexp.MustCompile("child"))
	if err != nil {
		t.Fatal(err)
	}
	var child int
	fmt.Sscanf(line, "child %d", &child)
	if len(left(t, l.Suffix)) == 0 {
		t.Fatal("a lab that runs is not to be seen: the check below would prove nothing")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if names := left(t, l.Suffix); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	for _, pid := range []int{p.Pid(), child} {
		for alive(pid) { // killed: the kernel ends it in its own time
			if ctx.Err() != nil {
				t.Fatalf("process %d still runs", pid)
			}
			time.Sleep(time.Millisecond) // between two looks
		}
	}
	if _, err := l.NewNamespace("late"); err == nil {
		t.Error("a closed lab makes namespaces")
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// alive: a zombie that some init has yet to reap doesn't count.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(fields) > 0 && fields[0] != "Z"
}

// TestMain lets the test binary play two more parts: a lab that is killed, and
// a program that enters a user namespace.
func TestMain(m *testing.M) {
	switch os.Getenv("LAB_TEST_PART") {
	case "killed":
		l, err := lab.New(lab.Config{})
		if err == nil {
			_, err = l.AddNode("a")
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		p, err := l.Nodes()[0].Start(lab.Command{Name: "sleeper", Path: "sleep", Args: []string{"300"}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Suffix, p.Pid())
		select {}
	case "user":
		os.Exit(userPart())
	}
	os.Exit(m.Run())
}

func TestLabThatWasKilledIsSweptByTheNext(t *testing.T) {
	labtest.NeedRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), "LAB_TEST_PART=killed")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var suffix string
	var pid int
	if _, err := fmt.Fscan(out, &suffix, &pid); err != nil {
		t.Fatal(err)
	}
	other := labtest.New(t, lab.Config{}) // must leave a lab that lives alone
	if len(left(t, suffix)) == 0 {
		t.Error("a second lab removed what a live one uses")
	}
	c.Process.Kill()
	c.Wait()
	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d outlived the one that started it", pid)
		}
	}
	labtest.New(t, lab.Config{})
	if names := left(t, suffix); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	if len(left(t, other.Suffix)) == 0 {
		t.Error("a lab that lives was swept")
	}
}

// userPart is a lab built by an ordinary user.
func userPart() int {
	code, second, err := lab.EnterUserNamespace(lab.NewNetwork)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if !second {
		return code
	}
	l, err := lab.New(lab.Config{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer l.Close()
	if _, err := l.AddNode("a"); err != nil {
		fmt.Println(err)
		return 1
	}
	out, err := l.Nodes()[0].Exec(context.Background(), lab.Command{Path: "cat", Args: []string{"/proc/sys/net/ipv4/ping_group_range"}})
	fmt.Printf("uid %d, ping groups %s, error %v\n", os.Geteuid(), strings.Fields(string(out)), err)
	return 7
}

// asUser runs the test binary's user part as uid 65534 in a mount namespace
// where the TUN device has the given mode.
func asUser(t *testing.T, mode uint32) (string, int) {
	t.Helper()
	labtest.NeedRoot(t)
	if _, err := os.Stat(userns.TunDevice); err != nil {
		t.Skipf("no TUN device on this machine: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "labuser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	binary := filepath.Join(dir, "lab.test") // go test's own directory is closed to others
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, b, 0o755); err != nil {
		t.Fatal(err)
	}
	tun := filepath.Join(dir, "tun")
	if err := syscall.Mknod(tun, syscall.S_IFCHR, 10<<8|200); err != nil {
		t.Skipf("device nodes are forbidden here (a user namespace, a container): %v", err)
	}
	if err := os.Chmod(tun, os.FileMode(mode)); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$1" /dev/net/tun && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"`
	c := exec.Command("unshare", "-m", "sh", "-c", script, "sh", tun, binary)
	c.Env = append(os.Environ(), "LAB_TEST_PART=user", "HOME=/", "TMPDIR=/tmp")
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

func TestOrdinaryUserBuildsALabInAUserNamespace(t *testing.T) {
	out, code := asUser(t, 0o666)
	if want := "uid 0, ping groups [0 0], error <nil>\n"; out != want || code != 7 {
		t.Errorf("exit code %d, output %q; want 7, %q", code, out, want)
	}
}

func TestClosedTunDeviceIsExplained(t *testing.T) {
	out, code := asUser(t, 0o600)
	if code != 1 || !strings.Contains(out, "chmod 0666 /dev/net/tun") || !strings.Contains(out, "udev") {
		t.Errorf("exit code %d, output %q", code, out)
	}
}
