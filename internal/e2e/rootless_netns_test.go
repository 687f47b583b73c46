package e2e

import (
	"bytes"
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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
	"vswitch/internal/userns"
)

// ordinaryUser is who runs commands in these tests: nobody.
const ordinaryUser = 65534

// user can do what an ordinary user of a machine can: start vswitch, open the TUN
// device, and have the ids mapped that /etc/subuid grants.
type user struct {
	dir    string
	binary string
	as     []string // in front of a command
}

// newUser prepares what root must for a user. It skips the test where that can't be
// had. grants is what stands in /etc/subuid and /etc/subgid.
func newUser(t *testing.T, grants string) *user {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsuser") // not t.TempDir: others can't read below that
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endPodman(t, dir)
		os.RemoveAll(dir)
	})
	if _, err := os.Stat(userns.TunDevice); err != nil {
		t.Skipf("no TUN device on this machine: %v", err)
	}
	u := &user{dir: dir, binary: filepath.Join(dir, "vswitch")}
	if err := errors.Join(os.Chmod(dir, 0o755), unix.Mknod(u.tun(), unix.S_IFCHR, 10<<8|200)); err != nil {
		t.Skipf("device nodes are forbidden here (a user namespace, a container): %v", err)
	}
	binary, err := os.ReadFile(filepath.Join(labtest.BinDir(t), "vswitch"))
	if err == nil {
		err = os.WriteFile(u.binary, binary, 0o755)
	}
	grantsFile := filepath.Join(dir, "grants")
	err = errors.Join(err, os.Chmod(u.tun(), 0o666), os.WriteFile(grantsFile, []byte(grants), 0o644))
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, statErr := os.Stat(name); statErr != nil {
			err = errors.Join(err, fmt.Errorf("%w: something must be there to put ours over", statErr))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$0/tun" /dev/net/tun && mount --bind "$0/grants" /etc/subuid && mount --bind "$0/grants" /etc/subgid && cd / &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all env HOME=/ "$@"`
	u.as = []string{"unshare", "-m", "sh", "-c", script, dir}
	return u
}

func (u *user) tun() string { return filepath.Join(u.dir, "tun") }

// runs is `vswitch rootless run` with flags, and a command behind "--".
func (u *user) runs(args ...string) lab.Command {
	all := slices.Concat(u.as, []string{u.binary, "rootless", "run", "--confine", "trap"}, args)
	return lab.Command{Name: "rootless", Path: all[0], Args: all[1:]}
}

// userHost is a machine of one user, with a way outside.
type userHost struct {
	*user
	t       *testing.T
	node    *lab.Node
	outside *lab.Node
}

func newUserHost(t *testing.T, grants string) *userHost {
	t.Helper()
	l := labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)})
	h := &userHost{t: t, user: newUser(t, grants)}
	var err error
	if h.node, err = l.AddNode("a"); err != nil {
		t.Fatal(err)
	}
	if h.outside, err = l.Outside(); err != nil {
		t.Fatal(err)
	}
	return h
}

// starts is a command that lasts, with its network.
func (h *userHost) starts(args ...string) *lab.Rootless {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	r, err := h.node.Rootless(ctx, "rootless", lab.RootlessConfig{As: h.as, Binary: h.binary, Args: append([]string{"--confine", "trap"}, args...)})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// serve makes a namespace answer on a port of all its addresses with its name and
// the client's address; stop ends it.
func (h *userHost) serve(ns *lab.Namespace, name, network string, port uint16) (stop func()) {
	h.t.Helper()
	var closer io.Closer
	at := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	err := ns.Do(func() error {
		if network == "udp" {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			closer = conn
			go answerDatagrams(conn, name)
			return nil
		}
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		closer = l
		go answerConnections(l, name)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { closer.Close() })
	return func() { closer.Close() }
}

func answerConnections(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := c.Read(make([]byte, 512)); err == nil {
				fmt.Fprintf(c, "%s %s", name, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			}
		}()
	}
}

func answerDatagrams(conn *net.UDPConn, name string) {
	b := make([]byte, 512)
	for {
		_, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", name, from.Addr().Unmap()), from)
	}
}

// eventually waits until f has no error.
func (h *userHost) eventually(what string, f func() error) {
	h.t.Helper()
	within(h.t, 10*time.Second, what, f)
}

// says reports whether a place answers with a name, and sees a client.
func says(ns *lab.Namespace, network string, to netip.AddrPort, name string, client netip.Addr) error {
	conn, err := dial(ns, network, netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second)) // a datagram that came too early has no answer
	io.WriteString(conn, "who")
	b := make([]byte, 512)
	size, err := conn.Read(b)
	if err != nil {
		return err
	}
	got := string(b[:size])
	if n, c := answer(got); n != name || client.IsValid() && c != client {
		return fmt.Errorf("%q, want %s to see %v", got, name, client)
	}
	return nil
}

// The whole way out, as an ordinary user without a capability, by all that a
// program inside finds by itself.
func TestRootlessCommandReachesTheWorld(t *testing.T) {
	h := newUserHost(t, "nobody:200000:65536\n")
	h.serve(h.outside.Namespace, "outside", "tcp", 8080)
	h.serve(h.outside.Namespace, "outside", "udp", 8080)
	r := h.starts("--host-loopback")
	for _, to := range []netip.Addr{h.outside.Underlay4, h.outside.Underlay6, lab.World4, lab.World6} {
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && (to == lab.World4 || to == lab.World6) {
				continue // a server on all addresses answers from another
			}
			from := h.node.Underlay4
			if to.Is6() {
				from = h.node.Underlay6
			}
			if err := says(r.Namespace, network, netip.AddrPortFrom(to, 8080), "outside", from); err != nil {
				t.Errorf("%s to %v: %v", network, to, err)
			}
		}
		if out, err := r.Exec(t.Context(), lab.Command{Path: "ping", Args: []string{"-c1", "-W2", to.String()}}); err != nil {
			t.Errorf("ping %v: %v: %s", to, err, out)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", r.Command))
	if want := "0 65534 1 1 200000 65536"; err != nil || strings.Join(strings.Fields(string(status)), " ") != want {
		t.Errorf("users are mapped %q (%v), want %q", status, err, want)
	}
	for _, pid := range h.processes(r) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(status), "\nCapEff:\t0000000000000000\n") || !strings.Contains(string(status), "\nUid:\t65534\t65534\t") {
			t.Errorf("process %d outside is not an ordinary one: %v\n%s", pid, err, status)
		}
	}
	// The host's loopback, by the gateway, since that was asked for.
	loopback := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 8081)
	listenTCP(t, h.node.Namespace, loopback, func(c net.Conn) { c.Read(make([]byte, 9)); io.WriteString(c, "loopback x") })
	if err := says(r.Namespace, "tcp", netip.MustParseAddrPort("10.0.2.2:8081"), "loopback", netip.Addr{}); err != nil {
		t.Errorf("host's loopback: %v", err)
	}
}

// processes are vswitch's own outside: what it started itself as, and its dataplane.
func (h *userHost) processes(r *lab.Rootless) []int {
	h.t.Helper()
	return []int{r.Process.Pid(), h.dataplane(r)}
}

// dataplane is the process that moves frames.
func (h *userHost) dataplane(r *lab.Rootless) int { return h.dataplaneOf(r.Process) }

func (h *userHost) dataplaneOf(p *lab.Process) int {
	h.t.Helper()
	for _, child := range children(p.Pid()) {
		args, err := os.ReadFile("/proc/" + child + "/cmdline")
		if err == nil && bytes.Contains(args, []byte("\x00dataplane\x00")) {
			pid := 0
			fmt.Sscan(child, &pid)
			return pid
		}
	}
	h.t.Fatal("no dataplane runs")
	return 0
}

// children are the ids of a process's children.
func children(pid int) (all []string) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

func TestRootlessPortsFollowWhatListens(t *testing.T) {
	h := newUserHost(t, "")
	r := h.starts("--publish-except", "9003")
	for i, network := range []string{"tcp", "udp"} {
		port := uint16(9000 + i)
		stop := h.serve(r.Namespace, "inside", network, port)
		for _, to := range []netip.Addr{h.node.Underlay4, h.node.Underlay6} {
			client := h.outside.Underlay4
			if to.Is6() {
				client = h.outside.Underlay6
			}
			h.eventually(fmt.Sprintf("%s from outside to %v", network, to), func() error {
				return says(h.outside.Namespace, network, netip.AddrPortFrom(to, port), "inside", client)
			})
		}
		// The host's own address can't be kept: the namespace has another way to it.
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		if err := says(h.node.Namespace, network, to, "inside", netip.MustParseAddr("10.0.2.2")); err != nil {
			t.Errorf("%s by the host's loopback: %v", network, err)
		}
		stop()
		h.eventually(network+" port closes", func() error {
			conn, err := dial(h.outside.Namespace, network, netip.AddrPort{}, netip.AddrPortFrom(h.node.Underlay4, port))
			if err == nil {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(100 * time.Millisecond)) // what is on its way in is lost
				io.WriteString(conn, "who")
				_, err = conn.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%v, want connection refused", err)
			}
			return nil
		})
	}
	// A port that the host keeps from this user.
	h.serve(r.Namespace, "low", "tcp", 80)
	h.eventually("a low port opens, higher", func() error {
		return says(h.outside.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 10080), "low", h.outside.Underlay4)
	})
	// What is excepted, or listens at loopback alone, stays unseen: known once what
	// came later is open.
	h.serve(r.Namespace, "excepted", "tcp", 9003)
	listenTCP(t, r.Namespace, netip.MustParseAddrPort("127.0.0.1:9004"), func(net.Conn) {})
	h.serve(r.Namespace, "inside", "tcp", 9005)
	h.eventually("the last port opens", func() error {
		return says(h.node.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 9005), "inside", netip.Addr{})
	})
	for _, port := range []uint16{9003, 9004} {
		if _, err := ask(h.node.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, port), "who"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %d: %v, want connection refused", port, err)
		}
	}
}

func TestRootlessPortsThatAreGiven(t *testing.T) {
	h := newUserHost(t, "")
	r := h.starts("--publish", "192.0.2.11:8000:80,8053:53/udp")
	h.serve(r.Namespace, "inside", "tcp", 80)
	h.serve(r.Namespace, "inside", "udp", 53)
	h.serve(r.Namespace, "inside", "tcp", 9000)
	if err := says(h.outside.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 8000), "inside", h.outside.Underlay4); err != nil {
		t.Error(err)
	}
	if err := says(h.outside.Namespace, "udp", netip.AddrPortFrom(h.node.Underlay6, 8053), "inside", h.outside.Underlay6); err != nil {
		t.Error(err)
	}
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(h.node.Underlay6, 8000), netip.AddrPortFrom(h.node.Underlay4, 9000)} {
		if _, err := ask(h.outside.Namespace, "tcp", to, "who"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v: %v, want connection refused: it was not asked for", to, err)
		}
	}
	// The host's loopback was not asked for either.
	listenTCP(t, h.node.Namespace, netip.MustParseAddrPort("127.0.0.1:8081"), func(net.Conn) {})
	for _, to := range []string{"10.0.2.2:8081", "127.0.0.1:8081"} {
		if _, err := ask(r.Namespace, "tcp", netip.MustParseAddrPort(to), "who"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", to, err)
		}
	}
}

// Names are asked of the address in /etc/resolv.conf, which is put over the host's.
func TestRootlessCommandHasNameServers(t *testing.T) {
	h := newUserHost(t, "")
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.node.Exec(t.Context(), h.runs("--", "cat", "/etc/resolv.conf"))
	if err != nil || !strings.HasPrefix(string(out), "nameserver 10.0.2.3\nnameserver fd76:7377:2::3\n") {
		t.Errorf("inside: %q, %v", out, err)
	}
	if after, err := os.ReadFile("/etc/resolv.conf"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the host's own was changed: %q, %v", after, err)
	}
	r := h.starts("--dns-upstream", "192.0.2.254:5353")
	upstream := netip.AddrPortFrom(h.outside.Underlay4, 5353)
	listenUDP(t, h.outside.Namespace, upstream, func(_ netip.AddrPort, q []byte) []byte { return addressAnswer(q, [4]byte{198, 51, 100, 7}) })
	for _, server := range []string{"10.0.2.3:53", "[fd76:7377:2::3]:53"} {
		var got []netip.Addr
		err := r.Do(func() (err error) {
			resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial(r.Namespace, network, netip.AddrPort{}, netip.MustParseAddrPort(server))
			}}
			got, err = resolver.LookupNetIP(t.Context(), "ip4", "name.example.")
			return err
		})
		if err != nil || len(got) != 1 || got[0].Unmap() != netip.MustParseAddr("198.51.100.7") {
			t.Errorf("%s says %v, %v", server, got, err)
		}
	}
}

// addressAnswer answers any question with one IPv4 address (RFC 1035 section 4).
func addressAnswer(query []byte, a [4]byte) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5
	r := append([]byte(nil), query[:end]...)
	r[2], r[3] = 0x81, 0x80
	copy(r[6:12], []byte{0, 1, 0, 0, 0, 0})
	r = append(r, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
	return append(r, a[:]...)
}

func TestRootlessPassesOnHowTheCommandEnds(t *testing.T) {
	h := newUserHost(t, "")
	t.Run("which is this process then", func(t *testing.T) { h.passesOn(t) })
	t.Run("whose init passes it on", func(t *testing.T) { h.passesOn(t, "--engine") })
}

// passesOn wants the command's end to be vswitch's, started with flags.
func (h *userHost) passesOn(t *testing.T, flags ...string) {
	runs := func(command ...string) lab.Command { return h.runs(slices.Concat(flags, command)...) }
	for _, tt := range []struct {
		name    string
		command []string
		code    int
		says    string
	}{
		{"well", []string{"--", "true"}, 0, ""},
		{"with a code", []string{"--", "sh", "-c", "exit 7"}, 7, ""},
		{"by a signal", []string{"--", "sh", "-c", "kill -9 $$"}, 128 + 9, ""},
		{"before it began", []string{"--", "/nonexistent"}, 127, "vswitch: /nonexistent: no such command"},
		{"since it is no program", []string{"--", "/etc/passwd"}, 126, "permission denied"},
		{"since what it is to see is absent", []string{"--bind", "/nonexistent:/opt", "--", "true"}, 125, "vswitch: --bind: open_tree /nonexistent: no such file"},
		{"since what it is to write is no directory", []string{"--copy-up", "/etc/passwd", "--", "true"}, 125, "copy up /etc/passwd: want a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.node.Exec(t.Context(), runs(tt.command...))
			code := 0
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tt.code || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("exit code %d, %v; want %d and %q", code, err, tt.code, tt.says)
			}
		})
	}
	t.Run("after a signal to vswitch", func(t *testing.T) {
		c := runs("--", "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
		p, err := h.node.Start(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WaitLog(t.Context(), readyWord); err != nil {
			t.Fatal(err)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		err = p.Wait(t.Context())
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(p.Log(), "got it") {
			t.Errorf("%v, want exit code 5; it said %q", err, p.Log())
		}
	})
}

// Root of a user namespace, such as a container's, has but the ids that are mapped there.
func TestRootlessInAUserNamespace(t *testing.T) {
	h := newUserHost(t, "")
	h.as = append(slices.Clone(h.as), "unshare", "--user", "--map-root-user")
	out, err := h.node.Exec(t.Context(), h.runs("--", "cat", "/proc/self/uid_map"))
	if got := strings.Fields(string(out)); err != nil || !slices.Equal(got, []string{"0", "0", "1"}) {
		t.Errorf("the map inside is %q, %v", got, err)
	}
}

// Nothing stays of a command whose vswitch was killed.
func TestRootlessLeavesNothingBehind(t *testing.T) {
	h := newUserHost(t, "")
	r := h.starts()
	h.serve(r.Namespace, "inside", "tcp", 9000)
	h.eventually("the port opens", func() error {
		return says(h.node.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 9000), "inside", netip.Addr{})
	})
	dataplane := h.dataplane(r)
	r.Process.Kill()
	for what, pid := range map[string]int{"command": r.Command, "dataplane": dataplane} {
		h.eventually(what+" ends", func() error {
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process %d: %v", pid, err)
			}
			return nil
		})
	}
	// This test has the namespace open still; its interface has nobody's queues.
	h.eventually("the interface goes", func() error {
		return r.Do(func() error {
			if _, err := net.InterfaceByName("tap0"); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
	})
	if _, err := ask(h.node.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 9000), "who"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port: %v, want connection refused", err)
	}
}

// The dataplane may crash: the interface stays, and another goes on.
func TestRootlessOutlivesItsDataplane(t *testing.T) {
	h := newUserHost(t, "")
	h.serve(h.outside.Namespace, "outside", "tcp", 8080)
	r := h.starts()
	h.serve(r.Namespace, "inside", "tcp", 9000)
	index := func() (i int) {
		if err := r.Do(func() error {
			l, err := net.InterfaceByName("tap0")
			if err == nil && l.Flags&net.FlagRunning == 0 {
				err = errors.New("it has no carrier")
			}
			if err == nil {
				i = l.Index
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return i
	}
	before := index()
	for range 3 {
		pid := h.dataplane(r)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.eventually("the way out is there again", func() error {
			return says(r.Namespace, "tcp", netip.AddrPortFrom(h.outside.Underlay4, 8080), "outside", h.node.Underlay4)
		})
		h.eventually("the way in is there again", func() error {
			return says(h.outside.Namespace, "tcp", netip.AddrPortFrom(h.node.Underlay4, 9000), "inside", h.outside.Underlay4)
		})
		if h.dataplane(r) == pid {
			t.Error("it was not killed")
		}
	}
	if after := index(); after != before {
		t.Errorf("interface %d became %d", before, after)
	}
}

func TestRootlessSaysWhatIsMissing(t *testing.T) {
	h := newUserHost(t, "")
	t.Run("the TUN device is closed", func(t *testing.T) {
		if err := os.Chmod(h.tun(), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(h.tun(), 0o666)
		_, err := h.node.Exec(t.Context(), h.runs("--", "true"))
		if !strings.Contains(fmt.Sprint(err), "sudo chmod 0666 /dev/net/tun") {
			t.Errorf("%v, want what would open it", err)
		}
	})
	t.Run("user namespaces are forbidden", func(t *testing.T) {
		// In a user namespace that may have none below it.
		c := lab.Command{Path: "unshare", Args: []string{"-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"`, "sh",
			h.binary, "rootless", "run", "--", "true"}}
		_, err := h.node.Exec(t.Context(), c)
		if !strings.Contains(fmt.Sprint(err), "user.max_user_namespaces=15000") {
			t.Errorf("%v, want what would allow them", err)
		}
	})
}

var readyWord = regexp.MustCompile(`^ready\n`)
