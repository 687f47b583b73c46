package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// nodeUser is an ordinary user of this host who runs a node: no capability, and the
// directories that a login session gives.
type nodeUser struct {
	t         *testing.T
	here      *lab.Namespace
	uid       int
	bin       string // of vswitch and vswitch-cni, where every user may run them
	home, run string
}

// newNodeUser makes a user's directories. Who they are exists in no database, and need not.
func newNodeUser(t *testing.T, here *lab.Namespace, uid int, dir string) *nodeUser {
	u := &nodeUser{t: t, here: here, uid: uid, bin: dir, home: filepath.Join(dir, fmt.Sprint(uid), "home"), run: filepath.Join(dir, fmt.Sprint(uid), "run")}
	for _, d := range []string{u.home, u.run} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, uid, uid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// command is a program as the user runs it, with nothing in its environment but what
// a session has.
func (u *nodeUser) command(name string, env []string, program string, args ...string) lab.Command {
	id := fmt.Sprint(u.uid)
	all := []string{"--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "env", "-i",
		"PATH=" + os.Getenv("PATH"), "HOME=" + u.home, "XDG_RUNTIME_DIR=" + u.run}
	return lab.Command{Name: name, Path: "setpriv", Args: append(append(append(all, env...), program), args...)}
}

var usersNodeReady = regexp.MustCompile(`^vswitch: ready`)

// daemon starts `vswitch run`, told nothing but what args say.
func (u *nodeUser) daemon(ctx context.Context, args ...string) *lab.Process {
	u.t.Helper()
	p, err := u.here.Start(u.command("vswitch", nil, filepath.Join(u.bin, "vswitch"), append([]string{"run"}, args...)...))
	if err != nil {
		u.t.Fatal(err)
	}
	if _, err := p.WaitLog(ctx, usersNodeReady); err != nil {
		u.t.Fatal(err)
	}
	return p
}

func (u *nodeUser) vswitch(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	c := u.command("vswitch "+args[0], nil, filepath.Join(u.bin, "vswitch"), args...)
	c.Stdin = strings.NewReader(stdin)
	return u.here.Exec(ctx, c)
}

// usersNode is a row of `vswitch get nodes`.
type usersNode struct {
	Name, Underlay string
	UDPPorts       []int
	Ready          bool
}

func (u *nodeUser) nodes(ctx context.Context) map[string]usersNode {
	u.t.Helper()
	out, err := u.vswitch(ctx, "", "get", "nodes", "-o", "json")
	if err != nil {
		u.t.Fatal(err)
	}
	var rows []usersNode
	if err := json.Unmarshal(out, &rows); err != nil {
		u.t.Fatal(err)
	}
	nodes := map[string]usersNode{}
	for _, r := range rows {
		nodes[r.Name] = r
	}
	return nodes
}

// TestUsersOfOneHost: two users who agreed on nothing run a node each at one address;
// one joins the other's store, and they know each other by address and port. Sockets,
// state and the plugin's way to them are the user's own.
func TestUsersOfOneHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	labtest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "vsusers") // short, and not below what only root may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vswitch", "vswitch-cni"} {
		program, err := os.ReadFile(filepath.Join(labtest.BinDir(t), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	here := labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)}).Here("host")
	one, two := newNodeUser(t, here, 70001, dir), newNodeUser(t, here, 70002, dir)

	store := freeURL(t)
	first := one.daemon(ctx, "--node", "one", "--listen-client", store)
	two.daemon(ctx, "--node", "two", "--store", "etcd="+store)
	var nodes map[string]usersNode
	for _, u := range []*nodeUser{one, two} {
		for nodes = u.nodes(ctx); !nodes["one"].Ready || !nodes["two"].Ready; nodes = u.nodes(ctx) {
			if ctx.Err() != nil {
				t.Fatalf("user %d knows %v", u.uid, nodes)
			}
		}
		a, b := nodes["one"], nodes["two"]
		if a.Underlay != b.Underlay || len(a.UDPPorts) == 0 || len(b.UDPPorts) == 0 ||
			slices.ContainsFunc(a.UDPPorts, func(p int) bool { return slices.Contains(b.UDPPorts, p) }) {
			t.Errorf("user %d: nodes %+v and %+v, want one address and ports of their own", u.uid, a, b)
		}
		// Case 44: nobody but the user, and root, may speak to the sockets.
		for _, f := range []struct {
			path string
			mode os.FileMode
		}{
			{u.run + "/vswitch", 0o700}, {u.run + "/vswitch/vswitch.sock", 0o600}, {u.run + "/vswitch/vswitch.sock.fds", 0o600},
			{u.home + "/.local/state/vswitch", 0o700},
		} {
			if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != f.mode {
				t.Errorf("%s: %v, %v; want mode %v", f.path, info, err, f.mode)
			}
		}
		// The plugin, root of the user's namespaces, finds the daemon without being told.
		if out, err := here.Exec(ctx, u.plugin("GC")); err != nil {
			t.Errorf("GC of user %d: %v: %s", u.uid, err, out)
		}
	}
	if out, err := two.vswitch(ctx, "", "get", "nodes", "--socket", one.run+"/vswitch/vswitch.sock"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("another user's socket: %s, %v", out, err)
	}

	t.Run("what two want only one has, which is said", func(t *testing.T) { oneNodePort(ctx, t, one, two) })

	before := nodes["one"]
	if out, err := one.vswitch(ctx, "", "upgrade"); err != nil {
		t.Errorf("upgrade: %v: %s", err, out)
	} else if after := one.nodes(ctx)["one"]; !slices.Equal(after.UDPPorts, before.UDPPorts) {
		t.Errorf("ports %v after an upgrade, %v before", after.UDPPorts, before.UDPPorts)
	}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if labtest.Long() {
		t.Run("what one gives up the other takes", func(t *testing.T) { takesOver(ctx, t, two) })
	}
	one.daemon(ctx, "--node", "one", "--listen-client", store)
	if after := one.nodes(ctx)["one"]; !slices.Equal(after.UDPPorts, before.UDPPorts) {
		t.Errorf("ports %v after a restart, %v before", after.UDPPorts, before.UDPPorts)
	}
	for _, wrong := range []struct{ name, said string }{{"store", "listen-client"}, {"name", "--node"}} {
		args := []string{"run", "--state-dir", two.home + "/other", "--socket", two.run + "/other.sock"}
		if wrong.name == "store" {
			args = append(args, "--listen-client", store)
		} else {
			args = append(args, "--node", "one", "--store", "etcd="+store)
		}
		if out, err := two.vswitch(ctx, "", args...); err == nil || !strings.Contains(err.Error(), wrong.said) {
			t.Errorf("another's %s: %s, %v; want to be told of %s", wrong.name, out, err, wrong.said)
		}
	}
}

// plugin is the plugin as a container runtime of the user's runs it.
func (u *nodeUser) plugin(verb string) lab.Command {
	c := u.command("vswitch-cni", []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + u.bin}, "unshare", "--user", "--map-root-user", filepath.Join(u.bin, "vswitch-cni"))
	c.Stdin = strings.NewReader(`{"cniVersion": "1.1.0", "name": "vswitch", "type": "vswitch-cni", "cni.dev/valid-attachments": []}`)
	return c
}

// oneNodePort: of two nodes at one address one opens a node port. The other says so.
func oneNodePort(ctx context.Context, t *testing.T, one, two *nodeUser) {
	const objects = `apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {type: NodePort, ports: [{port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-1, namespace: default, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.9], conditions: {ready: true}}]
ports: [{port: 80, protocol: TCP}]
`
	if out, err := one.vswitch(ctx, objects, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if global, err := net.InterfaceAddrs(); err != nil || !slices.ContainsFunc(global, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast()
	}) {
		t.Skip("this machine has no IPv4 address beside loopback, at which node ports open")
	}
	for {
		open, told := 0, 0
		for _, r := range append(one.listeners(ctx), two.listeners(ctx)...) {
			switch {
			case r.OpenAt != 0:
				open++
			case strings.Contains(r.Problem, "another node of this host"):
				told++
			}
		}
		if open > 0 && open == told {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d listeners open, %d told of; want as many of each", open, told)
		}
	}
}

// takesOver wants every port open at a node within the time after which it tries again.
func takesOver(ctx context.Context, t *testing.T, u *nodeUser) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	waits := func(r usersListener) bool { return r.OpenAt == 0 }
	for slices.ContainsFunc(u.listeners(ctx), waits) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not open: %+v", u.listeners(t.Context()))
		}
	}
}

// usersListener is a row of `vswitch get listeners`.
type usersListener struct {
	Address, Problem string
	OpenAt           int
}

func (u *nodeUser) listeners(ctx context.Context) []usersListener {
	u.t.Helper()
	out, err := u.vswitch(ctx, "", "get", "listeners", "-o", "json")
	if err != nil {
		u.t.Fatal(err)
	}
	var rows []usersListener
	if err := json.Unmarshal(out, &rows); err != nil {
		u.t.Fatal(err)
	}
	return rows
}

// freeURL is one that nobody listens at now.
func freeURL(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}
