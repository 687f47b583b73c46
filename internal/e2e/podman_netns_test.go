package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// A container runtime that people use, with the plugin as its containers' only
// network: podman as Debian 12 has it, which knows CNI up to 1.0.0. Containers are
// made of busybox alone, so no image is fetched.

// podman is the runtime on a node, with files and containers of its own.
type podman struct {
	t    *testing.T
	node *lab.Node
	as   []string // ahead of every command: what makes an ordinary user of root
	dir  string   // of its files
}

// containersConf is for machines of any kind: without systemd, with either kind of
// cgroups, and with less than podman's default limits. The ports that containers
// publish are the daemon's to open: podman is not to hold them.
const containersConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = [%q]
network_config_dir = %q
default_network = "vswitch"
[engine]
enable_port_reservation = false
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = %q
`

const storageConf = `[storage]
driver = "vfs"
graphroot = %q
runroot = %q
[storage.options]
ignore_chown_errors = "true"
[storage.options.vfs]
ignore_chown_errors = "true"
`

// newPodman prepares the runtime below dir, which whoever runs it can write, with
// plugin as one entry of the network configuration.
func newPodman(t *testing.T, node *lab.Node, dir, binDir string, plugin map[string]any, as []string) *podman {
	t.Helper()
	p := &podman{t: t, node: node, as: as, dir: dir}
	config, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "vswitch", "plugins": []any{plugin}})
	if err != nil {
		t.Fatal(err)
	}
	image, err := busyboxImage()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"net.d/10-vswitch.conflist": config,
		"containers.conf":           fmt.Appendf(nil, containersConf, binDir, p.path("net.d"), p.path("tmp")),
		"storage.conf":              fmt.Appendf(nil, storageConf, p.path("store"), p.path("run")),
		"image.tar":                 image,
	} {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(p.path(name)), 0o755), os.WriteFile(p.path(name), content, 0o644))
	}
	if as != nil {
		err = errors.Join(err, os.Chown(p.path("net.d"), ordinaryUser, ordinaryUser)) // podman keeps a lock there
	}
	if err != nil {
		t.Fatal(err)
	}
	p.must("import", p.path("image.tar"), "localhost/busybox:test")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := p.removeAll(ctx); err != nil {
			t.Errorf("remove what is left of the containers: %v", err)
		}
	})
	return p
}

// removeAll ends all containers, those in another's namespace first.
func (p *podman) removeAll(ctx context.Context) error {
	remove := []string{"rm", "--force", "--ignore", "--time", "0"}
	_, err := p.run(ctx, append(remove, "neighbour")...)
	_, all := p.run(ctx, append(remove, "--all")...)
	return errors.Join(err, all)
}

func (p *podman) path(name string) string { return filepath.Join(p.dir, name) }

// busyboxImage is a root file system of one program.
func busyboxImage() ([]byte, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: want Debian's busybox-static", err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	err = w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	for _, name := range []string{"bin/sh", "bin/wget", "bin/ip", "bin/httpd", "bin/sleep", "bin/timeout"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}))
	}
	return image.Bytes(), errors.Join(err, w.Close())
}

// run runs a podman command to its end.
func (p *podman) run(ctx context.Context, args ...string) (string, error) {
	all := slices.Concat(p.as, []string{"env", "HOME=" + p.dir, "TMPDIR=" + p.dir,
		"CONTAINERS_CONF=" + p.path("containers.conf"), "CONTAINERS_STORAGE_CONF=" + p.path("storage.conf"), "podman"}, args)
	out, err := p.node.Exec(ctx, lab.Command{Name: "podman", Path: all[0], Args: all[1:]})
	return strings.TrimSpace(string(out)), err
}

func (p *podman) must(args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	out, err := p.run(ctx, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// start makes a container that runs a command in the background.
func (p *podman) start(name string, flags []string, command ...string) {
	p.t.Helper()
	if !slices.Contains(flags, "--network") {
		flags = append([]string{"--network", "vswitch"}, flags...) // an ordinary user's default is another
	}
	p.must(slices.Concat([]string{"run", "--detach", "--name", name}, flags, []string{"localhost/busybox:test"}, command)...)
}

// web serves its name on port 80 and logs each client's address.
func (p *podman) web(name string, flags ...string) {
	p.start(name, flags, "sh", "-c", "mkdir /w && echo "+name+" >/w/index.html && exec httpd -f -v -p 80 -h /w 2>&1")
}

// fetch gets a page from within a container.
func (p *podman) fetch(from, host string, port uint16) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	return p.run(ctx, "exec", from, "timeout", "5", "wget", "-q", "-O", "-", fmt.Sprintf("http://%s/", net.JoinHostPort(host, fmt.Sprint(port))))
}

// wantPage tries until a container gets a page: a server takes its time to listen.
func (p *podman) wantPage(from, host string, port uint16, want string) {
	p.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got, err := p.fetch(from, host, port)
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			p.t.Errorf("from %s, http://%s port %d: %q %v, want %q", from, host, port, got, err, want)
			return
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the condition
	}
}

var containerAddress = regexp.MustCompile(`(?m)^\d+: (\S+) +inet6? ([0-9a-f.:]+)/(\d+)`)

// addresses are a container's on eth0, v4 first. Beyond that and lo it must have none.
func (p *podman) addresses(name string) (v4, v6 netip.Addr) {
	p.t.Helper()
	for _, m := range containerAddress.FindAllStringSubmatch(p.must("exec", name, "ip", "-o", "address"), -1) {
		a, err := netip.ParseAddr(m[2])
		switch {
		case err != nil:
			p.t.Fatal(err)
		case m[1] == "lo" || a.IsLinkLocalUnicast():
		case m[1] != "eth0" || m[3] != map[bool]string{true: "32", false: "128"}[a.Is4()]:
			p.t.Errorf("%s has %s", name, m[0])
		case a.Is4():
			v4 = a
		default:
			v6 = a
		}
	}
	if !v4.IsValid() || !v6.IsValid() {
		p.t.Fatalf("%s has addresses %v and %v, want one of each family", name, v4, v6)
	}
	return v4, v6
}

// containerService publishes an address as Service web, by a NodePort too.
const containerService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [%q]}]
`

// carries runs containers through every kind of traffic. vswitch runs that command for
// whoever owns the daemon.
func (p *podman) carries(outside *lab.Node, vswitch func(stdin string, args ...string) (string, error)) {
	p.t.Helper()
	p.web("web")
	p.start("client", nil, "sleep", "1000000")
	v4, v6 := p.addresses("web")

	p.wantPage("web", "127.0.0.1", 80, "web") // container to itself
	p.start("neighbour", []string{"--network", "container:web"}, "sleep", "1000000")
	p.wantPage("neighbour", "::1", 80, "web") // container to container of one pod
	for _, to := range []netip.Addr{v4, v6} { // pod to pod
		p.wantPage("client", to.String(), 80, "web")
	}

	if out, err := vswitch(fmt.Sprintf(containerService, v4), "apply", "-f", "-"); err != nil {
		p.t.Fatalf("%v %s", err, out)
	}
	p.wantPage("client", "web.default.svc.cluster.local", 80, "web") // to a service, by its name

	world := netip.AddrPortFrom(lab.World4, 8000)
	dir := p.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("world"), 0o644); err != nil {
		p.t.Fatal(err)
	}
	serveFiles(p.t, outside.Namespace, world, dir)
	p.wantPage("client", world.Addr().String(), world.Port(), "world") // to the outside

	p.fromOutside(outside, 30080)
}

// fromOutside asks web by a port of the node, and wants it to see the client's address.
func (p *podman) fromOutside(outside *lab.Node, port uint16) {
	p.t.Helper()
	at := netip.AddrPortFrom(p.node.Underlay(), port)
	deadline := time.Now().Add(10 * time.Second)
	for {
		page, err := getPage(outside.Namespace, at)
		if err == nil && page == "web" {
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("from outside, port %d: %q %v", port, page, err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the condition
	}
	if said, client := p.must("logs", "web"), outside.Underlay().String(); !strings.Contains(said, client) {
		p.t.Errorf("port %d: the container saw\n%s\nwant the client's own address %s", port, said, client)
	}
}

func getPage(from *lab.Namespace, at netip.AddrPort) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = from.Do(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, addr); return err })
			return c, err
		},
	}}
	r, err := client.Get("http://" + at.String() + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(b)), err
}

// needPodman are the programs of these tests.
var needPodman = []string{"podman", "runc", "conmon", "busybox", "env"}

func TestPodman(t *testing.T) {
	need(t, needPodman...)
	c := newNodes(t, lab.Config{})
	node := c.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := node.StartDaemon(ctx, lab.RunConfig{}); err != nil {
		t.Fatal(err)
	}
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	vswitch := func(stdin string, args ...string) (string, error) {
		out, err := node.Vswitch(ctx, stdin, args...)
		return string(out), err
	}
	p := newPodman(t, node, t.TempDir(), labtest.BinDir(t), map[string]any{
		"type": "vswitch-cni", "socket": node.Socket(), "capabilities": map[string]bool{"portMappings": true},
	}, nil)
	p.carries(outside, vswitch)

	if err := p.removeAll(ctx); err != nil {
		t.Fatal(err)
	}
	p.web("web", "--publish", "8080:80")
	p.fromOutside(outside, 8080)

	if err := p.removeAll(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := getPage(outside.Namespace, netip.AddrPortFrom(node.Underlay(), 8080)); err == nil {
		t.Error("the published port answers when its container is gone")
	}
	wantNoPods(t, vswitch)
}

func wantNoPods(t *testing.T, vswitch func(stdin string, args ...string) (string, error)) {
	t.Helper()
	out, err := vswitch("", "get", "pods", "-o", "json")
	var pods []any
	if err == nil {
		err = json.Unmarshal([]byte(out), &pods)
	}
	if err != nil || len(pods) != 0 {
		t.Errorf("pods that are left: %v %s", err, out)
	}
}

// An ordinary user's daemon, and that user's podman: nothing here is root but what
// readies the machine.
func TestRootlessPodman(t *testing.T) {
	need(t, append(needPodman, "setpriv", "unshare", "slirp4netns")...)
	h := newUserHost(t, "")
	home := filepath.Join(h.dir, "home")
	as := slices.Concat(h.as, []string{"env", "XDG_RUNTIME_DIR=" + home + "/run", "XDG_STATE_HOME=" + home + "/state", "HOME=" + home})
	err := errors.Join(os.MkdirAll(home+"/run", 0o700), os.MkdirAll(home+"/state", 0o700))
	plugin, readErr := os.ReadFile(filepath.Join(labtest.BinDir(t), "vswitch-cni"))
	err = errors.Join(err, readErr, os.WriteFile(filepath.Join(h.dir, "vswitch-cni"), plugin, 0o755))
	for _, dir := range []string{home, home + "/run", home + "/state"} {
		err = errors.Join(err, os.Chown(dir, ordinaryUser, ordinaryUser))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := slices.Concat(as, []string{h.binary, "run", "--underlay", h.node.Underlay().String()})
	daemon, err := h.node.Start(lab.Command{Name: "vswitch", Path: all[0], Args: all[1:]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.WaitLog(ctx, regexp.MustCompile(`^vswitch: ready`)); err != nil {
		t.Fatal(err)
	}
	vswitch := func(stdin string, args ...string) (string, error) {
		all := slices.Concat(as, []string{h.binary}, args)
		out, err := h.node.Exec(ctx, lab.Command{Name: "vswitch-cli", Path: all[0], Args: all[1:], Stdin: strings.NewReader(stdin)})
		return string(out), err
	}

	// Podman publishes an ordinary user's ports itself: the plugin is not to.
	p := newPodman(t, h.node, home, h.dir, map[string]any{"type": "vswitch-cni"}, as)
	p.carries(h.outside, vswitch)
	if err := p.removeAll(ctx); err != nil {
		t.Fatal(err)
	}
	wantNoPods(t, vswitch)
	if err := daemon.Stop(); err != nil {
		t.Error(err)
	}
}

// endPodman ends what an ordinary user's podman leaves for its next command, if dir has
// any: a process that holds the user's namespaces.
func endPodman(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // went meanwhile
			return nil
		case err != nil || d.Name() != "pause.pid":
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && bytes.Contains(environ, []byte(dir)) { // it is still that one
			err = unix.Kill(pid, unix.SIGKILL)
		}
		return err
	})
	if err != nil {
		t.Errorf("podman's own process: %v", err)
	}
}
