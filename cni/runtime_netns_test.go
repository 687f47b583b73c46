package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"vswitch/cni/cnitest"
)

// Two things act as the plugin's process. Most tests run the binary that users
// get. Those that fail or kill it ahead of a step run this test's own binary,
// which TestMain turns into the plugin when stepEnv is set:
//
//	log:FILE    write each step's name to a file
//	fail:STEP   that step fails
//	kill:STEP   the process kills itself ahead of it
const stepEnv = "VSWITCH_TEST_CNI_STEP"

func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" && os.Getenv(stepEnv) != "" {
		os.Exit((&plugin{before: stepFromEnv}).serve())
	}
	code := m.Run()
	if builtDir != "" {
		os.RemoveAll(builtDir)
	}
	os.Exit(code)
}

func stepFromEnv(step string) error {
	verb, arg, _ := strings.Cut(os.Getenv(stepEnv), ":")
	switch {
	case verb == "log":
		f, err := os.OpenFile(arg, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintln(f, step)
		return err
	case verb == "fail" && arg == step:
		return fmt.Errorf("failed for the test")
	case verb == "kill" && arg == step:
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return nil
}

// builtDir holds the plugin built for these tests; TestMain removes it.
var builtDir string

var build = sync.OnceValues(func() (string, error) {
	var err error
	if builtDir, err = os.MkdirTemp("", "vscni"); err != nil {
		return "", err
	}
	path := filepath.Join(builtDir, pluginType)
	cmd := exec.Command("go", "build", "-o", path, "vswitch/cmd/vswitch-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	return path, nil
})

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and TAP devices")
	}
}

// host is a node: a daemon, and a runtime that calls the plugin.
type host struct {
	t      *testing.T
	daemon *cnitest.Daemon
	plugin string // path
	cni    *libcni.CNIConfig
}

func newHost(t *testing.T, c cnitest.Config) *host {
	t.Helper()
	needRoot(t)
	plugin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return &host{
		t:      t,
		daemon: cnitest.New(t, c),
		plugin: plugin,
		cni:    libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(plugin)}, t.TempDir(), nil),
	}
}

// list is a configuration list with the plugin alone.
func (h *host) list(version string) *libcni.NetworkConfigList {
	h.t.Helper()
	l, err := libcni.ConfListFromBytes(fmt.Appendf(nil,
		`{"cniVersion":%q,"name":"net","plugins":[{"type":"vswitch-cni","socket":%q}]}`, version, h.daemon.Socket))
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

// invocation is one call of the plugin without libcni, which would refuse to make
// most bad ones.
type invocation struct {
	command, id, ifname, netns string
	args, override             string
	stdin                      string
	step                       string // see stepEnv
}

// good is a call with nothing wrong. Tests change it.
func (h *host) good(command, id string, n *cnitest.Netns) invocation {
	c := invocation{command: command, id: id, ifname: "eth0", stdin: h.conf("")}
	if n != nil {
		c.netns = n.Path
	}
	return c
}

// conf is a network configuration; more is JSON keys, each with a comma before.
func (h *host) conf(more string) string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"vswitch-cni","socket":%q%s}`, h.daemon.Socket, more)
}

// command is the plugin's process for c, yet to be started.
func (h *host) command(ctx context.Context, c invocation) *exec.Cmd {
	path := h.plugin
	env := []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + filepath.Dir(path), "CNI_COMMAND=" + c.command,
		"CNI_CONTAINERID=" + c.id, "CNI_IFNAME=" + c.ifname, "CNI_NETNS=" + c.netns, "CNI_ARGS=" + c.args,
		"CNI_NETNS_OVERRIDE=" + c.override,
	}
	if c.step != "" {
		path = os.Args[0]
		env = append(env, stepEnv+"="+c.step)
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin = strings.NewReader(c.stdin)
	return cmd
}

const invokeTimeout = time.Minute

// invoke runs the plugin and returns its stdout and its error: nil, the error it
// printed, or that of a process that died.
func (h *host) invoke(c invocation) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), invokeTimeout)
	defer cancel()
	cmd := h.command(ctx, c)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	var e types.Error
	if json.Unmarshal(stdout.Bytes(), &e) == nil && e.Code != 0 {
		return stdout.String(), &e
	}
	return stdout.String(), fmt.Errorf("%w: stdout %q, stderr %q", err, stdout.String(), stderr.String())
}

// invokeInto runs the plugin with a file for its stdout.
func (h *host) invokeInto(c invocation, stdout *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), invokeTimeout)
	defer cancel()
	cmd := h.command(ctx, c)
	cmd.Stdout = stdout
	return cmd.Run()
}

// must invokes and expects success.
func (h *host) must(c invocation) string {
	h.t.Helper()
	out, err := h.invoke(c)
	if err != nil {
		h.t.Fatalf("%s %s: %v", c.command, c.id, err)
	}
	return out
}

// fails invokes and expects an error of that code, and one object of JSON, the
// error, on stdout.
func (h *host) fails(c invocation, want uint, says string) {
	h.t.Helper()
	out, err := h.invoke(c)
	if err == nil {
		h.t.Errorf("%s %s succeeded with %s", c.command, c.id, out)
		return
	}
	var e *types.Error
	if !asCNIError(err, &e) {
		h.t.Errorf("%s %s: %v", c.command, c.id, err)
		return
	}
	if e.Code != want || !strings.Contains(e.Error(), says) {
		h.t.Errorf("%s %s: code %d, %q; want code %d and %q", c.command, c.id, e.Code, e.Error(), want, says)
	}
}

func asCNIError(err error, e **types.Error) bool {
	got, ok := err.(*types.Error)
	*e = got
	return ok
}

// wantClean fails the test if the daemon records anything, or a namespace has any
// interface but lo.
func (h *host) wantClean(spaces ...*cnitest.Netns) {
	h.t.Helper()
	for _, a := range h.daemon.Attachments() {
		h.t.Errorf("still recorded: %v", a)
	}
	for _, n := range spaces {
		if names := linkNames(h.t, n); strings.Join(names, " ") != "lo" {
			h.t.Errorf("interfaces %v, want lo alone", names)
		}
	}
}

func linkNames(t *testing.T, n *cnitest.Netns) (names []string) {
	t.Helper()
	err := n.Do(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return names
}
