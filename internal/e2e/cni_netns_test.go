package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// Cases 69 to 72: the plugin and the daemon that users get, called through libcni
// as a container runtime does, or by hand where no runtime would. Package cni has
// the same against a daemon of its own, at every step.

// host is one node with a store of its own and no cluster around it.
type host struct {
	t    *testing.T
	node *lab.Node
	ctx  context.Context
}

func newHost(t *testing.T, args ...string) *host {
	t.Helper()
	l := labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)})
	n, err := l.AddNode("host")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	if err := n.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: args}); err != nil {
		t.Fatal(err)
	}
	return &host{t, n, ctx}
}

// newPods makes namespaces that are not attached yet.
func (h *host) newPods(n int, spec lab.PodSpec) []*lab.Pod {
	h.t.Helper()
	var pods []*lab.Pod
	for range n {
		p, err := h.node.NewPod(spec)
		if err != nil {
			h.t.Fatal(err)
		}
		pods = append(pods, p)
	}
	return pods
}

// each calls f for every pod at the same time.
func each(pods []*lab.Pod, f func(*lab.Pod) error) []error {
	errs := make([]error, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() { errs[i] = f(p) })
	}
	wg.Wait()
	return errs
}

func (h *host) add(p *lab.Pod) error { return p.Add(h.ctx) }
func (h *host) del(p *lab.Pod) error { return p.Del(h.ctx) }

// all fails the test if any of errs is one.
func (h *host) all(what string, errs []error) {
	h.t.Helper()
	if err := errors.Join(errs...); err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
}

// wantPods checks that the daemon knows just so many pods, no two with one address.
func (h *host) wantPods(want int) {
	h.t.Helper()
	var rows []struct {
		Name string
		IPs  []netip.Addr
	}
	get(h.t, h.node, "pods", &rows)
	holder := map[netip.Addr]string{}
	for _, r := range rows {
		for _, a := range r.IPs {
			if holder[a] != "" {
				h.t.Errorf("%v belongs to %s and %s", a, holder[a], r.Name)
			}
			holder[a] = r.Name
		}
	}
	if len(rows) != want {
		h.t.Errorf("%d pods, want %d: %v", len(rows), want, rows)
	}
}

// links are the interfaces of a namespace but lo.
func links(t *testing.T, ns *lab.Namespace) (names []string) {
	t.Helper()
	all, err := ns.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if l.Attrs().Name != "lo" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// code is that of a CNI error; 0 for none, or an error that is no plugin's.
func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// Case 69: every version of the specification through libcni.
func TestCNIVersions(t *testing.T) {
	h := newHost(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			h := &host{t, h.node, h.ctx}
			p := h.newPods(1, lab.PodSpec{Name: "pod", CNIVersion: version})[0]
			if err := p.Add(h.ctx); err != nil {
				t.Fatal(err)
			}
			if !p.IPv4.IsValid() || !p.IPv6.IsValid() {
				t.Errorf("result has %v and %v, want an address of each family", p.IPv4, p.IPv6)
			}
			for _, gateway := range []string{"169.254.1.1", "fe80::1%eth0"} {
				if err := pingText(p, gateway); err != nil {
					t.Error(err)
				}
			}
			if version != "0.3.1" { // CHECK came with 0.4.0
				if err := p.Check(h.ctx); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			h.wantPods(1)
			if err := p.Add(h.ctx); err == nil {
				t.Error("a second ADD of the same interface succeeded")
			}
			if err := pingText(p, "169.254.1.1"); err != nil {
				t.Errorf("after the ADD that was refused: %v", err)
			}
			for i := range 3 {
				if err := p.Del(h.ctx); err != nil {
					t.Errorf("DEL %d: %v", i+1, err)
				}
			}
			h.wantPods(0)
			if got := links(t, p.Namespace); len(got) > 0 {
				t.Errorf("interfaces left: %v", got)
			}
		})
	}
	t.Run("DEL of what never was", func(t *testing.T) {
		p := h.newPods(1, lab.PodSpec{})[0]
		if err := p.Del(h.ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("DEL when the namespace is gone", func(t *testing.T) {
		h := &host{t, h.node, h.ctx}
		p := h.newPods(1, lab.PodSpec{})[0]
		if err := p.Add(h.ctx); err != nil {
			t.Fatal(err)
		}
		if err := p.Namespace.Close(); err != nil {
			t.Fatal(err)
		}
		if err := p.Del(h.ctx); err != nil {
			t.Error(err)
		}
		h.wantPods(0)
	})
	t.Run("ADD where the interface exists", func(t *testing.T) {
		h := &host{t, h.node, h.ctx}
		p := h.newPods(1, lab.PodSpec{})[0]
		if err := p.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}); err != nil {
			t.Fatal(err)
		}
		if err := p.Add(h.ctx); err == nil {
			t.Error("ADD over an interface of that name succeeded")
		}
		h.wantPods(0)
		if got := links(t, p.Namespace); strings.Join(got, " ") != "eth0" {
			t.Errorf("interfaces are %v, want the eth0 that was there", got)
		}
	})
}

func pingText(p *lab.Pod, to string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := p.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-q", "-c", "1", "-w", "10", to}})
	return err
}

// Case 70: what no runtime would say, each with its code, and nothing is made.
func TestCNIBadInput(t *testing.T) {
	h := newHost(t)
	p := h.newPods(1, lab.PodSpec{})[0]
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"vswitch","type":"vswitch-cni","socket":%q}`, h.node.Socket())
	for _, tt := range []struct {
		name  string
		env   map[string]string // over a good ADD's
		stdin string            // empty: conf
		code  uint
	}{
		{name: "no container id", env: map[string]string{"CNI_CONTAINERID": ""}, code: types.ErrInvalidEnvironmentVariables},
		{name: "a path as container id", env: map[string]string{"CNI_CONTAINERID": "../../etc/x"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "an interface name of 16 bytes", env: map[string]string{"CNI_IFNAME": "abcdefghijklmnop"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "a path as interface name", env: map[string]string{"CNI_IFNAME": "../eth0"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "an interface name in Greek", env: map[string]string{"CNI_IFNAME": "ηθ0"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "an interface name the kernel would number", env: map[string]string{"CNI_IFNAME": "eth%d"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "no namespace", env: map[string]string{"CNI_NETNS": ""}, code: types.ErrInvalidEnvironmentVariables},
		{name: "a namespace that isn't", env: map[string]string{"CNI_NETNS": "/proc/self/cmdline"}, code: types.ErrInvalidNetNS},
		{name: "an unknown command", env: map[string]string{"CNI_COMMAND": "FROB"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "CNI_ARGS without a value", env: map[string]string{"CNI_ARGS": "K8S_POD_NAME"}, code: types.ErrInvalidEnvironmentVariables},
		{name: "a pod namespace in upper case", env: map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=No_Good"}, code: types.ErrInvalidNetworkConfig},
		{name: "no JSON", stdin: "cniVersion: 1.1.0", code: types.ErrDecodingFailure},
		{name: "nothing", stdin: " ", code: types.ErrDecodingFailure},
		{name: "a version of the future", stdin: strings.Replace(conf, "1.1.0", "9.9.9", 1), code: types.ErrIncompatibleCNIVersion},
		{name: "a socket that is no path", stdin: strings.Replace(conf, h.node.Socket(), "sock", 1), code: types.ErrInvalidNetworkConfig},
		{name: "a socket nobody listens on", stdin: strings.Replace(conf, ".sock", ".none", 1), code: types.ErrTryAgainLater},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{
				"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "bad-input", "CNI_IFNAME": "eth0", "CNI_NETNS": p.Path,
				"CNI_PATH": labtest.BinDir(t), "CNI_ARGS": "",
			}
			for k, v := range tt.env {
				env[k] = v
			}
			var list []string
			for k, v := range env {
				list = append(list, k+"="+v)
			}
			stdin := tt.stdin
			if stdin == "" {
				stdin = conf
			}
			out, exit, err := h.node.Plugin(h.ctx, list, stdin)
			if err != nil {
				t.Fatal(err)
			}
			var said types.Error
			if err := json.Unmarshal(out, &said); err != nil || exit == 0 {
				t.Fatalf("exit code %d, said %q: %v", exit, out, err)
			}
			if said.Code != tt.code {
				t.Errorf("code %d (%s; %s), want %d", said.Code, said.Msg, said.Details, tt.code)
			}
			if got := links(t, p.Namespace); len(got) > 0 {
				t.Errorf("interfaces left: %v", got)
			}
		})
	}
	h.wantPods(0)
}

// Cases 71 and 72: a small pool is emptied by parallel ADDs; STATUS says so; DEL
// and GC heal it; CHECK sees what is missing.
func TestCNIPool(t *testing.T) {
	// A /27 less network, router and broadcast address: 29 pods.
	const pods, addresses = 30, 29
	h := newHost(t, "--node-cidr-size-v4", "27")
	list, err := h.node.NetworkConfig(lab.PodSpec{CNIVersion: "1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	status := func() error { return h.node.CNI().GetStatusNetworkList(h.ctx, list) }
	if err := status(); err != nil {
		t.Errorf("STATUS of an empty node: %v", err)
	}
	all := h.newPods(pods, lab.PodSpec{})
	var in []*lab.Pod
	for i, err := range each(all, h.add) {
		switch {
		case err == nil:
			in = append(in, all[i])
		case code(err) != types.ErrTryAgainLater:
			t.Errorf("ADD without an address left: %v, want code %d", err, types.ErrTryAgainLater)
		case len(links(t, all[i].Namespace)) > 0:
			t.Errorf("ADD without an address left: interfaces %v", links(t, all[i].Namespace))
		}
	}
	if len(in) != addresses {
		t.Fatalf("%d pods were added, want %d", len(in), addresses)
	}
	h.wantPods(addresses)
	if err := status(); err == nil {
		t.Error("STATUS is well although no address is free")
	} else if c := code(err); c < 50 || c > 51 {
		t.Errorf("STATUS: %v, want code 50 or 51", err)
	}

	if err := in[0].Del(h.ctx); err != nil {
		t.Fatal(err)
	}
	if err := status(); err != nil {
		t.Errorf("STATUS with an address free: %v", err)
	}
	if err := in[0].Add(h.ctx); err != nil {
		t.Errorf("ADD with an address free: %v", err)
	}

	// GC keeps two and removes the others, interfaces and all.
	args := &libcni.GCArgs{}
	for _, p := range in[:2] {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ContainerID, IfName: "eth0"})
	}
	if err := h.node.CNI().GCNetworkList(h.ctx, list, args); err != nil {
		t.Errorf("GC: %v", err)
	}
	h.wantPods(2)
	for _, p := range in[:2] {
		if err := errors.Join(p.Check(h.ctx), pingText(p, "169.254.1.1")); err != nil {
			t.Errorf("a pod that GC was told to keep: %v", err)
		}
	}
	// libcni keeps no result of those GC deleted, so their CHECK is of no use here.
	if got := links(t, in[2].Namespace); len(got) > 0 {
		t.Errorf("a pod that GC removed has %v", got)
	}

	p := in[0]
	eth0, err := p.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Netlink().AddrDel(eth0, &netlink.Addr{IPNet: &p.Result.IPs[0].Address}); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(h.ctx); err == nil {
		t.Error("CHECK is well although an address is gone")
	}
	if err := in[1].Netlink().LinkDel(mustLink(t, in[1])); err != nil {
		t.Fatal(err)
	}
	if err := in[1].Check(h.ctx); err == nil {
		t.Error("CHECK is well although the interface is gone")
	}
	h.all("DEL", each(all, h.del))
	h.all("DEL again", each(all, h.del))
	h.wantPods(0)
}

func mustLink(t *testing.T, p *lab.Pod) netlink.Link {
	t.Helper()
	l, err := p.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Case 71: the daemon is killed while ADDs are under way, again and again. What a
// runtime does next, DEL, is enough: the pool is as large as before.
func TestCNIDaemonKilledDuringAdd(t *testing.T) {
	const addresses = 5 // a /29 less network, router and broadcast address
	h := newHost(t, "--node-cidr-size-v4", "29")
	pods := h.newPods(addresses, lab.PodSpec{})
	for _, said := range []string{"", "pod added", "pod attached"} {
		adds := make(chan []error, 1)
		go func() { adds <- each(pods, h.add) }()
		if said != "" {
			if _, err := h.node.Daemon().WaitLog(h.ctx, regexp.MustCompile(`msg="`+said+`"`)); err != nil {
				t.Fatal(err)
			}
		}
		h.node.Daemon().Kill()
		for i, err := range <-adds {
			if err != nil && code(err) != types.ErrTryAgainLater {
				t.Errorf("killed after %q: ADD of pod %d: %v, want code %d", said, i, err, types.ErrTryAgainLater)
			}
			if err != nil && len(links(t, pods[i].Namespace)) > 0 {
				t.Errorf("killed after %q: ADD of pod %d failed and left %v", said, i, links(t, pods[i].Namespace))
			}
		}
		// Some DELs come while no daemon runs, some after.
		h.all("DEL without a daemon", each(pods[:2], h.del))
		if err := h.node.RestartDaemon(h.ctx); err != nil {
			t.Fatal(err)
		}
		h.all("DEL", each(pods, h.del))
		h.wantPods(0)
		h.all("every address can be had again: ADD", each(pods, h.add))
		h.wantPods(addresses)
		for _, p := range pods {
			if err := pingText(p, "169.254.1.1"); err != nil {
				t.Error(err)
			}
		}
		h.all("DEL", each(pods, h.del))
		h.wantPods(0)
	}
	for _, f := range []string{"leases.json", "attachments.json"} {
		var info os.FileInfo
		within(t, patience, f+" is written", func() (err error) {
			info, err = os.Stat(filepath.Join(h.node.StateDir(), f))
			return err
		})
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o, want 600", f, mode)
		}
	}
}
