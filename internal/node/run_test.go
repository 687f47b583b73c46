package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
	"vswitch/control/embedded"
	"vswitch/internal/config"
)

// TestMain is also the store: the daemon starts its own program for that.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store" {
		os.Exit(store(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func store(args []string) int {
	var c embedded.Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	c.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := notifyContext()
	defer stop()
	if err := embedded.Serve(ctx, c, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// daemon is a node that runs in this process, on loopback.
type daemon struct {
	cfg   config.Config
	ready chan string // its line
	ended chan error
	stop  context.CancelFunc
	log   *lockedBuffer
}

// newConfig is a node in directories of its own, at a free port of 127.0.0.1.
func newConfig(t *testing.T) config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "vs") // short: unix sockets' paths are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return config.Config{
		Node: "a", Underlay: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, UDPPort: freePort(t),
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		NodeBitsV4:  24, NodeBitsV6: 64, Workers: 2, Offload: true,
		SocketPath: filepath.Join(dir, "run", "v.sock"), StateDir: filepath.Join(dir, "state"),
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func start(t *testing.T, cfg config.Config) *daemon {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r, w := io.Pipe()
	d := &daemon{cfg: cfg, ready: make(chan string, 1), ended: make(chan error, 1), stop: stop, log: &lockedBuffer{}}
	go func() {
		line, err := bufio.NewReader(r).ReadString('\n')
		if err == nil {
			d.ready <- line
		}
	}()
	go func() {
		err := Run(ctx, cfg, Options{Version: "test", Ready: w, Log: slog.New(slog.NewTextHandler(d.log, nil))})
		w.Close()
		d.ended <- err
	}()
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", d.log)
		}
	})
	return d
}

const patience = 30 * time.Second

// waitReady is its line.
func (d *daemon) waitReady(t *testing.T) string {
	t.Helper()
	select {
	case line := <-d.ready:
		return line
	case err := <-d.ended:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready in time")
	}
	return ""
}

// end stops it, as SIGTERM does, and wants that to go well.
func (d *daemon) end(t *testing.T) {
	t.Helper()
	d.stop()
	if err := d.wait(t); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func (d *daemon) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		t.Fatal("did not end in time")
	}
	return nil
}

func (d *daemon) client(t *testing.T) *apiv1.Client {
	t.Helper()
	c, err := apiv1.Dial(t.Context(), d.cfg.SocketPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// rows are what `vswitch get KIND` shows.
func rows(t *testing.T, c *apiv1.Client, kind string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for row, err := range c.Rows(t.Context(), kind) {
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(row, &fields); err != nil {
			t.Fatal(err)
		}
		out = append(out, fields)
	}
	return out
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ask(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

const web = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"port":80}]}}`

func addRequest(id string) *apiv1.AddPodRequest {
	return &apiv1.AddPodRequest{
		Key:   &apiv1.AttachmentKey{Network: "vswitch", ContainerId: id, Ifname: "eth0"},
		Netns: "/run/netns/" + id, Pod: &apiv1.Pod{Namespace: "default", Name: id},
	}
}

// TestANodeLives starts a node with its own store, uses all of its API, stops it,
// and starts it again while no store answers.
func TestANodeLives(t *testing.T) {
	fdsBefore := openFDs(t)
	cfg := newConfig(t)
	d := start(t, cfg)
	line := d.waitReady(t)
	want := fmt.Sprintf("vswitch: ready: node a, pods 10.244.0.0/24 fd00:10:244::/64, vxlan 127.0.0.1:%d vni 1, traffic between nodes is not encrypted\n", cfg.UDPPort)
	if line != want {
		t.Errorf("said %q\nwant %q", line, want)
	}
	c := d.client(t)
	if r, err := c.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || !r.Ready {
		t.Errorf("status %v, %v", r, err)
	}
	pod, err := c.AddPod(t.Context(), addRequest("c1"))
	if err != nil {
		t.Fatal(err)
	}
	// The first address is the router's; 65,535 is what a loopback underlay leaves.
	if got := fmt.Sprint(pod.Ips); got != "[10.244.0.2/32 fd00:10:244::2/128]" || pod.Queues != 2 || pod.MtuBytes < 1280 {
		t.Errorf("pod %v", pod)
	}
	_, err = c.AddPod(t.Context(), addRequest("c1"))
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("again: %v", err)
	}
	if _, err := c.DelPod(t.Context(), &apiv1.DelPodRequest{Key: addRequest("c1").Key}); err != nil {
		t.Error(err)
	}
	if _, err := c.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(web)}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is known", func() bool { return len(rows(t, c, "services")) == 1 })
	eventually(t, "the node is known and lives", func() bool {
		nodes := rows(t, c, "nodes")
		return len(nodes) == 1 && nodes[0]["ready"] == true
	})
	node := rows(t, c, "node")[0]
	for _, field := range []string{"name", "podCIDRs", "underlay", "udpPorts", "vni", "vtepMAC", "ready"} {
		if node[field] == nil {
			t.Errorf("node row %v lacks %s", node, field)
		}
	}
	if node["underlay"] != "127.0.0.1" || node["name"] != "a" {
		t.Errorf("node row %v", node)
	}
	wantRoutes(t, c)
	for _, err = range c.Rows(t.Context(), "widgets") {
	}
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), kindsOfRows) {
		t.Errorf("get widgets: %v", err)
	}
	second := cfg
	second.SocketPath += "2"
	if err := start(t, second).wait(t); err == nil || !strings.Contains(err.Error(), "another vswitch runs on it") {
		t.Errorf("a second daemon on the state directory: %v", err)
	}
	c.Close()
	eventually(t, "the last good state is on disk", func() bool {
		return bytes.Contains(lastGood(t, cfg), []byte(`"web"`))
	})
	d.end(t)
	if _, err := os.Stat(cfg.SocketPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
	eventually(t, "every descriptor is closed again", func() bool { return openFDs(t) <= fdsBefore })

	withoutStore(t, cfg)
}

// lastGood is what a node has written of what its store said.
func lastGood(t *testing.T, cfg config.Config) (text []byte) {
	t.Helper()
	for _, name := range []string{snapshotFile, journalFile} {
		b, err := os.ReadFile(filepath.Join(cfg.StateDir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	return text
}

// withoutStore starts a node that has lived before, and reaches no store now.
func withoutStore(t *testing.T, cfg config.Config) {
	t.Helper()
	cfg.Store.URLs = []string{"http://127.0.0.1:1"}
	d := start(t, cfg)
	if line := d.waitReady(t); !strings.Contains(line, "10.244.0.0/24") {
		t.Errorf("without store: said %q", line)
	}
	c := d.client(t)
	if got := rows(t, c, "services"); len(got) != 1 || got[0]["name"] != "web" {
		t.Errorf("without store: services %v", got)
	}
	if r, err := c.AddPod(t.Context(), addRequest("c2")); err != nil || r.Ips[0] != "10.244.0.3/32" {
		t.Errorf("without store: pod %v, %v", r, err) // .2 was given back a moment ago and is not used again yet
	}
	_, err := c.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(web)}})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("without store: apply: %v", err)
	}
	c.Close()
	d.end(t)
}

func wantRoutes(t *testing.T, c *apiv1.Client) {
	t.Helper()
	got := map[string]any{}
	for _, r := range rows(t, c, "routes") {
		got[r["destination"].(string)] = r["kind"]
	}
	for prefix, kind := range map[string]string{
		"10.244.0.0/16": "unreachable", "10.244.0.0/24": "unreachable", "10.244.0.1/32": "router", "169.254.1.1/32": "router",
		"10.96.0.0/16": "vip", "127.0.0.1/32": "node", "0.0.0.0/0": "egress",
		"fd00:10:244::/48": "unreachable", "fd00:10:244::/64": "unreachable", "fd00:10:244::1/128": "router", "fe80::1/128": "router",
		"fd00:10:96::/112": "vip", "::/0": "egress",
	} {
		if got[prefix] != kind {
			t.Errorf("route %s is %v, want %s", prefix, got[prefix], kind)
		}
	}
}

// TestANewNodeWaitsForTheStore has never lived before: it can't know its CIDR.
func TestANewNodeWaitsForTheStore(t *testing.T) {
	cfg := newConfig(t)
	cfg.Store.URLs = []string{"http://127.0.0.1:1"}
	d := start(t, cfg)
	eventually(t, "the API listens", func() bool { _, err := os.Stat(cfg.SocketPath); return err == nil })
	c := d.client(t)
	r, err := c.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil || r.Ready || !strings.Contains(r.Reason, "no pod CIDR") {
		t.Errorf("status %v, %v", r, err)
	}
	_, err = c.AddPod(t.Context(), addRequest("c1"))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("add: %v", err)
	}
	for _, kind := range []string{"nodes", "pods", "services", "endpoints", "flows", "drops"} {
		if got := rows(t, c, kind); len(got) != 0 {
			t.Errorf("%s: %v", kind, got)
		}
	}
	if got := rows(t, c, "routes"); len(got) != 1 || got[0]["kind"] != "node" { // its own address
		t.Errorf("routes: %v", got)
	}
	c.Close()
	d.end(t)
}

// TestDeletedMeanwhile: a plugin left word while no daemon ran.
func TestDeletedMeanwhile(t *testing.T) {
	cfg := newConfig(t)
	if err := os.MkdirAll(filepath.Dir(cfg.SocketPath), 0o700); err != nil {
		t.Fatal(err)
	}
	k := addRequest("c1").GetKey()
	if err := api.WriteTombstone(cfg.SocketPath, api.AttachmentKey{Network: k.GetNetwork(), ContainerID: k.GetContainerId(), Ifname: k.GetIfname()}); err != nil {
		t.Fatal(err)
	}
	d := start(t, cfg)
	d.waitReady(t)
	if keys, err := api.Tombstones(cfg.SocketPath); err != nil || len(keys) != 0 {
		t.Errorf("left: %v, %v", keys, err)
	}
	d.end(t)
}

func TestWhatCannotBeOpenedIsNamed(t *testing.T) {
	busy, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	tests := []struct {
		name   string
		change func(*config.Config)
		want   []string
	}{
		{"an underlay address of another host", func(c *config.Config) { c.Underlay = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, []string{"--underlay 192.0.2.1"}},
		{"a port that is taken", func(c *config.Config) { c.UDPPort = busy.LocalAddr().(*net.UDPAddr).AddrPort().Port() }, []string{"--udp-port", "address already in use"}},
		{"a socket where a directory is", func(c *config.Config) { c.SocketPath = filepath.Dir(c.StateDir) }, []string{"--socket"}},
		{"an authority that is no file", func(c *config.Config) {
			c.Store.URLs, c.Store.CA = []string{"https://127.0.0.1:1"}, "/nonexistent/ca.pem"
		}, []string{"--store-ca", "/nonexistent/ca.pem"}},
		{"an embedded store's certificate that is no file", func(c *config.Config) {
			c.Store = config.Store{ListenClient: "https://127.0.0.1:0", Cert: "/nonexistent/cert.pem", Key: "/nonexistent/key.pem"}
		}, []string{"--store-cert", "/nonexistent/cert.pem", "want PEM files"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := newConfig(t)
			cfg.Store.URLs = []string{"http://127.0.0.1:1"}
			tt.change(&cfg)
			err := start(t, cfg).wait(t)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestClaimsOfAnotherPlanAreNotHeld(t *testing.T) {
	plan := control.Claim{
		Node: "a", Instance: "i", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, BitsIPv4: 24, BitsIPv6: 64,
	}
	for name, change := range map[string]func(*control.Claim){
		"node": func(c *control.Claim) { c.Node = "b" }, "instance": func(c *control.Claim) { c.Instance = "j" },
		"cluster":  func(c *control.Claim) { c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"services": func(c *control.Claim) { c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")} },
		"size":     func(c *control.Claim) { c.BitsIPv4 = 25 },
	} {
		other := plan
		change(&other)
		if samePlan(&plan, &other) {
			t.Errorf("another %s is the same plan", name)
		}
	}
	if !samePlan(&plan, &plan) {
		t.Error("the same plan is not")
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
