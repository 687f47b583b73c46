package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RunConfig is how a node's daemon is started.
type RunConfig struct {
	// Store is the value of --store.
	Store string
	// Args are added to `vswitch run`; Env to its environment.
	Args, Env []string
	// Binary instead of vswitch from the lab's BinDir.
	Binary string
	// Wrapper is a program and arguments ahead of it, which must become the daemon.
	Wrapper []string
	// Files are its descriptors from 3 on.
	Files []*os.File
	// Older leaves out the flags that came later than the older version that is run.
	Older bool
	// FindUnderlay leaves the underlay address for the daemon to find.
	FindUnderlay bool
}

// ready is how the line begins by which the daemon says so.
var ready = regexp.MustCompile(`^vswitch: ready`)

// Socket is the path of the daemon's API.
func (n *Node) Socket() string {
	if n.socket != "" {
		return n.socket
	}
	return n.lab.path(n.Host, "api.sock")
}

// StateDir is the daemon's --state-dir. It survives a restart.
func (n *Node) StateDir() string { return n.lab.path(n.Host, "state") }

// StartDaemon starts `vswitch run` on the node and waits until it says it is ready. A
// daemon stopped before is started with the same state directory.
func (n *Node) StartDaemon(ctx context.Context, c RunConfig) error {
	if n.daemon != nil && n.daemon.state() == "running" {
		return fmt.Errorf("lab: node %s: its daemon runs already", n.Host)
	}
	if c.Binary == "" {
		c.Binary = filepath.Join(n.lab.cfg.BinDir, "vswitch")
	}
	if err := os.MkdirAll(n.StateDir(), 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	args := []string{"run", "--node", n.Host, "--socket", n.Socket(), "--state-dir", n.StateDir()}
	if !c.Older {
		args = append(args, "--runtime-dir", filepath.Join(runtimeDir(n.lab.Suffix), n.Host))
	}
	if !c.FindUnderlay {
		args = append(args, "--underlay", n.Underlay().String())
	}
	if c.Store != "" {
		args = append(args, "--store", c.Store)
	}
	env := c.Env
	if n.lab.cfg.Confine != "" {
		env = append([]string{"VSWITCH_CONFINE=" + n.lab.cfg.Confine}, env...)
	}
	command := slices.Concat(c.Wrapper, []string{c.Binary}, args, c.Args)
	p, err := n.Start(Command{Name: "vswitch", Path: command[0], Args: command[1:], Env: env, Files: c.Files})
	if err != nil {
		return err
	}
	n.daemon, n.run = p, c
	line, err := p.WaitLog(ctx, ready)
	if err != nil {
		return err
	}
	n.lab.cfg.Logf("node %s: %s", n.Host, line)
	return nil
}

// Daemon is the node's daemon, running or ended; nil before StartDaemon.
func (n *Node) Daemon() *Process { return n.daemon }

// Dataplane is the process that does the daemon's work: a child of the daemon, which
// only keeps what must outlive it.
func (n *Node) Dataplane() (pid int, err error) {
	// One thread starts children, but not always the same: all are asked.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.daemon.Pid()))
	if err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	for _, f := range files {
		children, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		for _, child := range strings.Fields(string(children)) {
			args, err := os.ReadFile("/proc/" + child + "/cmdline")
			if err != nil || !strings.HasPrefix(string(args), n.run.Binary+"\x00run\x00") {
				continue
			}
			return strconv.Atoi(child)
		}
	}
	return 0, fmt.Errorf("lab: node %s: no dataplane runs", n.Host)
}

// RestartDaemon starts the daemon, which must have ended, again as it was started last.
func (n *Node) RestartDaemon(ctx context.Context) error { return n.StartDaemon(ctx, n.run) }

// StoreURL is where further nodes find this node's embedded store.
func (n *Node) StoreURL() string {
	return "http://" + netip.AddrPortFrom(n.Underlay(), cmp.Or(n.store, 2379)).String()
}

// RunCluster starts a daemon on every node given: the first with an embedded
// store open to the underlay, the others as its clients. args go to each. It
// returns once every node knows every other as ready.
func RunCluster(ctx context.Context, nodes []*Node, args ...string) error {
	for i, n := range nodes {
		c := RunConfig{Store: "embedded", Args: append([]string{"--listen-client", n.StoreURL(), "--insecure"}, args...)}
		if i > 0 {
			c = RunConfig{Store: "etcd=" + nodes[0].StoreURL(), Args: append([]string{"--insecure"}, args...)}
		}
		if err := n.StartDaemon(ctx, c); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.waitNodes(ctx, len(nodes)); err != nil {
			return err
		}
	}
	return nil
}

// waitNodes waits until the node's daemon knows that many ready nodes.
func (n *Node) waitNodes(ctx context.Context, want int) error {
	for {
		var rows []struct {
			Ready bool `json:"ready"`
		}
		if err := n.Get(ctx, "nodes", &rows); err != nil {
			return err
		}
		ready := 0
		for _, r := range rows {
			if r.Ready {
				ready++
			}
		}
		if ready >= want {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("lab: node %s knows %d ready nodes, not %d: %w", n.Host, ready, want, context.Cause(ctx))
		}
	}
}

// Vswitch runs a client command of vswitch against the node's daemon.
func (n *Node) Vswitch(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	return n.Exec(ctx, Command{
		Name:  "vswitch " + args[0],
		Path:  filepath.Join(n.lab.cfg.BinDir, "vswitch"),
		Args:  append(args, "--socket", n.Socket()),
		Stdin: strings.NewReader(stdin),
	})
}

// Apply applies YAML documents.
func (n *Node) Apply(ctx context.Context, yaml string) error {
	file, err := n.temporary(yaml)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = n.Vswitch(ctx, "", "apply", "-f", file)
	return err
}

// Delete deletes the objects of YAML documents.
func (n *Node) Delete(ctx context.Context, yaml string) error {
	file, err := n.temporary(yaml)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = n.Vswitch(ctx, "", "delete", "-f", file)
	return err
}

func (n *Node) temporary(content string) (string, error) {
	f, err := os.CreateTemp(n.lab.Dir, "*.yaml")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	_, err = f.WriteString(content)
	return f.Name(), errors.Join(err, f.Close())
}

// Get reads what `vswitch get KIND -o json` prints into rows, a pointer to a slice.
func (n *Node) Get(ctx context.Context, kind string, rows any) error {
	out, err := n.Vswitch(ctx, "", "get", kind, "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, rows); err != nil {
		return fmt.Errorf("lab: vswitch get %s -o json on %s: %w\n%s", kind, n.Host, err, out)
	}
	return nil
}
