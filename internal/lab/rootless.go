package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rootless is a command with a network of its own: `vswitch rootless run` on a
// node. Its namespace lasts as long as the command.
type Rootless struct {
	*Namespace
	Process *Process // vswitch's own
	Command int      // the command's pid
}

// RootlessConfig says how it is started.
type RootlessConfig struct {
	// Args are `vswitch rootless run`'s flags.
	Args []string
	// As goes before the program: what makes an ordinary user of root, say.
	As []string
	// Binary instead of vswitch from the lab's BinDir.
	Binary string
}

// commandBegan is what the command says first.
var commandBegan = regexp.MustCompile(`^command (\d+)\n`)

// Rootless starts a command that does nothing, and waits until it has its network.
func (n *Node) Rootless(ctx context.Context, name string, c RootlessConfig) (*Rootless, error) {
	if c.Binary == "" {
		c.Binary = filepath.Join(n.lab.cfg.BinDir, "vswitch")
	}
	args := append(append([]string(nil), c.As...), c.Binary, "rootless", "run")
	args = append(append(args, c.Args...), "--", "sh", "-c", `echo command $$; exec sleep 1000000`)
	p, err := n.Start(Command{Name: name, Path: args[0], Args: args[1:]})
	if err != nil {
		return nil, err
	}
	line, err := p.WaitLog(ctx, commandBegan)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimPrefix(line, "command "))
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", name, err)
	}
	space, err := n.Adopt(name, fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	return &Rootless{Namespace: space, Process: p, Command: pid}, nil
}

// Adopt takes in a namespace that a process of the node's has. It stays when the
// lab ends, and ends with its last process.
func (m *Node) Adopt(role, path string) (*Namespace, error) {
	l := m.lab
	name := namePrefix + l.Suffix + "-" + m.Host + "-" + role
	n := &Namespace{Name: name, Path: path, lab: l, borrowed: true}
	var err error
	if n.handle, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w", name, err)
	}
	l.mu.Lock()
	l.spaces = append(l.spaces, n)
	l.mu.Unlock()
	err = n.Do(func() (err error) {
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: netlink in %s: %w", name, err)
	}
	return n, nil
}
