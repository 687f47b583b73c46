package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vswitch/internal/cgroup"
	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// Container engines in a network of their own (`vswitch rootless run --engine`), as
// Debian has them, with no setting but what an ordinary user finds there.

// engineImage is for engines to read what `docker save` writes: busybox alone.
func engineImage() ([]byte, error) {
	layer, err := busyboxImage()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": "config.json", "RepoTags": []string{engineImageName}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return nil, err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content))}))
		_, writeErr := w.Write(f.content)
		err = errors.Join(err, writeErr)
	}
	return image.Bytes(), errors.Join(err, w.Close())
}

const engineImageName = "localhost/busybox:test"

// engineHost is a machine whose user starts a container engine.
type engineHost struct {
	*userHost
	home string
}

func newEngineHost(t *testing.T) *engineHost {
	t.Helper()
	h := newUserHost(t, "nobody:200000:65536\n")
	e := &engineHost{h, h.home(t)}
	image, err := engineImage()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = errors.Join(os.WriteFile(filepath.Join(e.home, "image.tar"), image, 0o644),
		os.WriteFile(filepath.Join(dir, "index.html"), []byte("world"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	serveFiles(t, h.outside.Namespace, world, dir)
	// As where systemd runs the machine, which engines then ask for cgroups.
	e.as = append([]string{"unshare", "-m", "sh", "-c", `mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/systemd/system && exec "$@"`, "sh"}, e.as...)
	return e
}

var world = netip.AddrPortFrom(lab.World4, 8000)

// runs starts a script as root of the user's namespaces, with flags.
func (e *engineHost) runs(script string, flags ...string) *lab.Process {
	e.t.Helper()
	all := slices.Concat(e.as, []string{"env", "HOME=" + e.home, "XDG_RUNTIME_DIR=" + e.home, "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		e.binary, "rootless", "run", "--engine"}, flags, []string{"--", "sh", "-ec", script, e.dir})
	p, err := e.node.Start(lab.Command{Name: "engine", Path: all[0], Args: all[1:]})
	if err != nil {
		e.t.Fatal(err)
	}
	return p
}

// publishes wants a page by a port of the host, and the server to see its client.
func (e *engineHost) publishes(ctx context.Context, p *lab.Process, port uint16) {
	e.t.Helper()
	if _, err := p.WaitLog(ctx, regexp.MustCompile(`^serving`)); err != nil {
		e.t.Fatal(err)
	}
	e.eventually("the published port answers", func() error {
		page, err := getPage(e.outside.Namespace, netip.AddrPortFrom(e.node.Underlay4, port))
		if err == nil && page != "web" {
			err = fmt.Errorf("%q; it said %s", page, p.Tail(20))
		}
		return err
	})
	if _, err := p.WaitLog(ctx, regexp.MustCompile(regexp.QuoteMeta(e.outside.Underlay4.String())+`\]?:\d+: response:200`)); err != nil {
		e.t.Errorf("the server didn't see its client's own address: %v", err)
	}
}

// all are the processes of the user namespace that vswitch made.
func (e *engineHost) all(p *lab.Process) (all []string) {
	e.t.Helper()
	spaces, _ := filepath.Glob("/proc/[0-9]*/ns/user")
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		e.t.Fatal(err)
	}
	theirs := ""
	for _, child := range children(p.Pid()) {
		if ns, err := os.Readlink("/proc/" + child + "/ns/user"); err == nil && ns != own {
			theirs = ns
		}
	}
	for _, s := range spaces {
		if ns, err := os.Readlink(s); err == nil && ns == theirs {
			all = append(all, filepath.Dir(filepath.Dir(s)))
		}
	}
	return all
}

// wantGone wants processes to end.
func (e *engineHost) wantGone(processes []string) {
	e.t.Helper()
	if len(processes) < 3 {
		e.t.Errorf("these are the engine's processes: %v; its container's is missing", processes)
	}
	e.eventually("all processes end", func() error {
		for _, p := range processes {
			if text, err := os.ReadFile(p + "/cmdline"); err == nil {
				return fmt.Errorf("%s runs: %q", p, text)
			}
		}
		return nil
	})
}

// Podman as it is, with its own bridge: out, in, and the end, which takes all containers
// along, be it vswitch's that is killed.
func TestPodmanInANetworkOfItsOwn(t *testing.T) {
	needInstalled(t, "podman", "crun", "conmon", "newuidmap", "iptables")
	e := newEngineHost(t)
	e.program(t, "vswitch-demo")
	p := e.runs(`
test ! -e /run/systemd/system
podman load --quiet --input /opt/images/image.tar
podman run --rm `+engineImageName+` wget -q -O - http://`+world.String()+`/
echo
podman run --detach --name web --publish 8080:80 `+engineImageName+` sh -c 'mkdir /w; echo web >/w/index.html; echo serving; exec httpd -f -v -p 80 -h /w 2>&1'
podman run --detach --volume "$0/vswitch-demo:/demo" --publish 7000:7000 --publish 7000:7000/udp `+engineImageName+` /demo serve
exec podman logs --follow web
`, "--bind", e.home+":/opt/images")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.WaitLog(ctx, regexp.MustCompile(`^world$`)); err != nil {
		t.Fatal(err)
	}
	e.publishes(ctx, p, 8080)
	for _, protocol := range []string{"tcp", "udp"} {
		out, err := e.outside.Exec(ctx, lab.Command{Path: filepath.Join(labtest.BinDir(t), "vswitch-demo"), Args: []string{
			"load", "who", "--protocol", protocol, "--count", "1", "--first-contact", "10s", "--to", netip.AddrPortFrom(e.node.Underlay4, 7000).String()}})
		if want := fmt.Sprintf("%q:%q", "client", e.outside.Underlay4); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %s, %v; want it to see %s", protocol, out, err, want)
		}
	}
	processes := e.all(p)
	p.Kill()
	e.wantGone(processes)
	for _, name := range []string{"containers", ".local", ".config"} {
		if _, err := os.Stat(filepath.Join(e.home, name)); err == nil {
			t.Errorf("it left %s in the user's home", name)
		}
	}
}

// divides gives the user a cgroup, as a systemd session does, which commands start in.
func (e *engineHost) divides(t *testing.T) (dir string) {
	t.Helper()
	here, err := cgroup.Find()
	if err != nil {
		t.Skip(err)
	}
	dir = filepath.Join(here, filepath.Base(e.dir))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	t.Cleanup(func() {
		// All that is in it ends, also after a failure.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			t.Error(err)
		}
		e.eventually("the user's cgroup goes", func() error { return cgroup.RemoveTree(dir) })
	})
	for _, name := range []string{".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		err = errors.Join(err, os.Chown(filepath.Join(dir, name), ordinaryUser, ordinaryUser))
	}
	if err != nil {
		t.Fatal(err)
	}
	e.as = append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, dir}, e.as...)
	return dir
}

// Containerd, with a node of vswitch's own beside it, whose plugin is its containers'
// network: what a Kubernetes distribution without root is made of. A NodePort is open on
// the host.
func TestContainerdAndANodeInANetworkOfTheirOwn(t *testing.T) {
	needInstalled(t, "containerd", "ctr", "runc", "newuidmap")
	e := newEngineHost(t)
	session := e.divides(t)
	e.program(t, "vswitch-cni")
	service := fmt.Sprintf(containerService, "ADDRESS")
	if err := os.WriteFile(filepath.Join(e.home, "service.yaml"), []byte(service), 0o644); err != nil {
		t.Fatal(err)
	}
	p := e.runs(`
cd "$HOME"
"$0/vswitch" run >node.log 2>&1 &
containerd --log-level error >containerd.log 2>&1 &
"$0/vswitch" ready --wait 20s
for dir in /usr/lib/cni /opt/cni/bin; do mkdir -p $dir; "$0/vswitch" install-cni --bin-dir $dir; done
until ctr version >ctr.log 2>&1; do sleep 0.05; done
ctr images import image.tar >ctr.log 2>&1
# By default ctr asks for a share of the CPU, and so for the cpu controller.
run="ctr run --cni --cpu-shares 0"
$run --rm ` + engineImageName + ` client wget -q -O - http://` + world.String() + `/
echo
$run ` + engineImageName + ` web sh -c 'mkdir /w; echo web >/w/index.html; ip -4 -o address show eth0; exec httpd -f -v -p 80 -h /w 2>&1' >web.log &
until addr=$(grep -o '10\.244\.[0-9.]*' web.log); do sleep 0.05; done
sed "s/ADDRESS/$addr/" service.yaml | "$0/vswitch" apply -f -
echo serving
exec tail -f web.log
`)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.WaitLog(ctx, regexp.MustCompile(`^world$`)); err != nil {
		t.Fatal(err)
	}
	e.publishes(ctx, p, 30080)
	if made, err := filepath.Glob(filepath.Join(session, "vswitch-*/inside/default/web")); err != nil || len(made) != 1 {
		t.Errorf("the container's cgroup is not where it should be: %v, %v", made, err)
	}
	processes := e.all(p)
	if err := p.Stop(); err != nil && !strings.Contains(err.Error(), "exit status 143") {
		t.Error(err)
	}
	e.wantGone(processes)
	if left, err := filepath.Glob(filepath.Join(session, "vswitch-*")); err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
}
