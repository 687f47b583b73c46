package e2e

import (
	"context"
	"encoding/json"
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
)

// asSlirp puts a link to vswitch that takes slirp4netns's command line beside it.
func (u *user) asSlirp(t *testing.T) string {
	t.Helper()
	link := filepath.Join(u.dir, "vswitch-slirp4netns")
	if err := os.Symlink(u.binary, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// home is a directory of the user's own, for sockets and state; its name is short, as
// a socket's path must be.
func (u *user) home(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(u.dir, "h")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, ordinaryUser, ordinaryUser)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shell is a script that the user runs, after what newUser says.
func (u *user) shell(script string, args ...string) lab.Command {
	all := slices.Concat(u.as, []string{"sh", "-ec", script, "sh"}, args)
	return lab.Command{Name: "shell", Path: all[0], Args: all[1:]}
}

// needInstalled skips a test whose programs are not there.
func needInstalled(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%v: apt-get install %s", err, strings.Join(programs, " "))
		}
	}
}

var (
	holderSaid = regexp.MustCompile(`^holder (\d+)\n`)
	serving    = regexp.MustCompile(`^serving`)
	commandEnd = regexp.MustCompile(`^ended`)
)

// A namespace of the user's own, which slirp4netns's command line gives a network:
// what RootlessKit's network driver and port driver do.
func TestAttachTakesTheConventionsOfSlirp4netns(t *testing.T) {
	h := newUserHost(t, "")
	slirp, home := h.asSlirp(t), h.home(t)
	h.serve(h.outside.Namespace, "outside", "tcp", 8080)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	holder, err := h.node.Start(h.shell(`exec unshare -Urn sh -c 'echo holder $$; exec sleep 1000000'`))
	if err != nil {
		t.Fatal(err)
	}
	line, err := holder.WaitLog(ctx, holderSaid)
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(strings.TrimPrefix(line, "holder "))
	inside, err := h.node.Adopt("holder", "/proc/"+pid+"/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	api := filepath.Join(home, "api.sock")
	// The FIFO stands for a pipe whose other end tells it to end.
	p, err := h.node.Start(h.shell(`mkfifo "$4/exit"; exec "$1" -c --mtu 65520 -6 -r 3 -e 4 -a "$3" "$2" tap7 3>"$4/ready" 4<>"$4/exit"`, slirp, pid, api, home))
	if err != nil {
		t.Fatal(err)
	}
	h.eventually("it says that it is ready", func() error {
		got, err := os.ReadFile(filepath.Join(home, "ready"))
		if err == nil && string(got) != "1" {
			err = fmt.Errorf("%q; it said %s", got, p.Log())
		}
		return err
	})
	for _, to := range []netip.Addr{h.outside.Underlay4, h.outside.Underlay6} {
		if err := says(inside, "tcp", netip.AddrPortFrom(to, 8080), "outside", netip.Addr{}); err != nil {
			t.Errorf("to %v: %v", to, err)
		}
	}
	// slirp4netns lets the host's loopback in unless it is told not to.
	listenTCP(t, h.node.Namespace, netip.MustParseAddrPort("127.0.0.1:8081"), func(c net.Conn) { c.Read(make([]byte, 9)); io.WriteString(c, "loopback x") })
	if err := says(inside, "tcp", netip.MustParseAddrPort("10.0.2.2:8081"), "loopback", netip.Addr{}); err != nil {
		t.Errorf("host's loopback: %v", err)
	}

	h.serve(inside, "inside", "tcp", 80)
	at := netip.AddrPortFrom(h.node.Underlay4, 8000)
	added := slirpAsk(t, api, `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8000, "guest_port": 80}}`)
	if added != `{"return":{"id":1}}` {
		t.Fatalf("add_hostfwd: %s", added)
	}
	if err := says(h.outside.Namespace, "tcp", at, "inside", h.outside.Underlay4); err != nil {
		t.Errorf("the port: %v", err)
	}
	listenTCP(t, h.node.Namespace, netip.AddrPortFrom(h.node.Underlay4, 8001), func(net.Conn) {})
	if got := slirpAsk(t, api, `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8001, "guest_port": 80}}`); !strings.Contains(got, `"error"`) {
		t.Errorf("a port that is taken: %s", got)
	}
	// Should the dataplane crash, the port is open again.
	if err := unix.Kill(h.dataplaneOf(p), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("the port is open again", func() error { return says(h.outside.Namespace, "tcp", at, "inside", h.outside.Underlay4) })
	want := `{"return":{"entries":[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8000,"guest_addr":"10.0.2.100","guest_port":80}]}}`
	if got := slirpAsk(t, api, `{"execute": "list_hostfwd"}`); got != want {
		t.Errorf("list_hostfwd: %s\nwant %s", got, want)
	}
	if got := slirpAsk(t, api, `{"execute": "remove_hostfwd", "arguments": {"id": 1}}`); got != `{"return":{}}` {
		t.Errorf("remove_hostfwd: %s", got)
	}
	if _, err := ask(h.outside.Namespace, "tcp", at, "who"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port, removed: %v, want connection refused", err)
	}

	if err := os.WriteFile(filepath.Join(home, "exit"), []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx); err != nil {
		t.Errorf("told to end by its descriptor: %v", err)
	}
	if _, err := os.Stat(api); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the API socket is left: %v", err)
	}
	if err := inside.Do(func() error {
		if _, err := net.InterfaceByName("tap7"); err == nil {
			return errors.New("its interface is left")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// slirpAsk makes one request of the API socket.
func slirpAsk(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, text)
	c.CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil || !json.Valid(answer) {
		t.Fatalf("%s: %q, %v", text, answer, err)
	}
	return strings.TrimSpace(string(answer))
}

// Debian's RootlessKit, with its network driver and its port driver for slirp4netns.
func TestRootlessKitRunsOnIt(t *testing.T) {
	needInstalled(t, "rootlesskit", "newuidmap")
	h := newUserHost(t, "nobody:200000:65536\n")
	slirp, home := h.asSlirp(t), h.home(t)
	h.serve(h.outside.Namespace, "outside", "tcp", 8080)
	p, err := h.node.Start(h.shell(`exec rootlesskit --state-dir="$2/state" --net=slirp4netns --slirp4netns-binary="$1" --disable-host-loopback \
	--port-driver=slirp4netns --publish=0.0.0.0:8000:80/tcp --copy-up=/etc "$3" serve --listen 10.0.2.100:80`, slirp, home, h.program(t, "vswitch-demo")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.WaitLog(ctx, serving); err != nil {
		t.Fatal(err)
	}
	h.checkServer(p, netip.AddrPortFrom(h.node.Underlay4, 8000))
	// The way out, from beside the server: by its process.
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || !strings.HasPrefix(string(b), h.dir+"/vswitch-demo\x00serve") {
			continue
		}
		inside, err := h.node.Adopt("kit", filepath.Dir(f)+"/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if err := says(inside, "tcp", netip.AddrPortFrom(h.outside.Underlay4, 8080), "outside", h.node.Underlay4); err != nil {
			t.Errorf("out: %v", err)
		}
		return
	}
	t.Error("the server's process was not found")
}

// checkServer asks a server of ours in a namespace for its answer, from outside.
func (h *userHost) checkServer(p *lab.Process, at netip.AddrPort) {
	h.t.Helper()
	h.eventually("the published port answers", func() error {
		_, err := h.outside.Exec(h.t.Context(), lab.Command{Path: filepath.Join(labtest.BinDir(h.t), "vswitch-demo"),
			Args: []string{"load", "rtt", "--protocol", "tcp", "--to", at.String(), "--duration", "20ms"}})
		if err != nil {
			return fmt.Errorf("%w; it said %s", err, p.Tail(20))
		}
		return nil
	})
}

// program copies one of ours to where the user can read it.
func (u *user) program(t *testing.T, name string) string {
	t.Helper()
	to := filepath.Join(u.dir, name)
	b, err := os.ReadFile(filepath.Join(labtest.BinDir(t), name))
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// Debian's podman, of a user, whose containers' network is vswitch by way of
// network_cmd_path (containers.conf(5)).
func TestPodmanRunsOnIt(t *testing.T) {
	needInstalled(t, "podman", "runc", "newuidmap")
	h := newUserHost(t, "nobody:200000:65536\n")
	slirp, home := h.asSlirp(t), h.home(t)
	program := h.program(t, "vswitch-demo")
	script := `
export HOME="$2" XDG_RUNTIME_DIR="$2" PATH="$PATH:/usr/sbin:/sbin"
mkdir -p "$HOME/.config/containers"
cat >"$HOME/.config/containers/containers.conf" <<EOF
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
network_cmd_path = "$1"
EOF
printf '[storage]\ndriver = "vfs"\n' >"$HOME/.config/containers/storage.conf"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$HOME/.config/containers/policy.json"
cd "$HOME"
tar -C "$(dirname "$3")" -cf image.tar vswitch-demo
podman import image.tar demo
rm image.tar
status=0
timeout 60 podman run --rm --name server --network slirp4netns:port_handler=slirp4netns,mtu=1500 -p 8000:80 demo /vswitch-demo serve --listen :80 || status=$?
echo ended $status
`
	p, err := h.node.Start(h.shell(script, slirp, home, program))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.WaitLog(ctx, serving); err != nil {
		t.Fatal(err)
	}
	h.checkServer(p, netip.AddrPortFrom(h.node.Underlay4, 8000))
	stop := h.shell(`export HOME="$1" XDG_RUNTIME_DIR="$1" PATH="$PATH:/usr/sbin:/sbin"; podman stop --time 5 server`, home)
	if out, err := h.node.Exec(ctx, stop); err != nil {
		t.Errorf("stop: %v: %s", err, out)
	}
	if line, err := p.WaitLog(ctx, commandEnd); err != nil || line != "ended 0" {
		t.Errorf("%s, %v", line, err)
	}
	h.eventually("vswitch ends with the container", func() error {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), h.dir) {
				return fmt.Errorf("%s runs: %q", f, b)
			}
		}
		return nil
	})
}
