package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/cgroup"
)

// A node can be run by systemd: the machine's own program, as the first process of a
// container whose network namespace is the node's. The container's root is the
// machine's, and what is written there is in memory and goes with the container. It
// needs nothing but systemd itself (a Debian package), so no image and no registry.
// Another version's is run from a directory that holds another machine's files.

//go:embed boot.sh
var bootScript string

// systemdPath is where Debian, and most others, have it.
const systemdPath = "/lib/systemd/systemd"

// System is a systemd that runs, and what it manages.
type System struct {
	node *Node
	init *Process
	root string // what is there, but for what has changed
}

// NoSystemd is why this machine can't run the one in root; nil: it can.
func NoSystemd(root string) error {
	if _, err := os.Stat(filepath.Join(root, systemdPath)); err != nil {
		return fmt.Errorf("needs Debian's package systemd: %w", err)
	}
	// proc(5), uid_map: everybody is mapped in the first user namespace alone. In others
	// there are no device nodes, and no cgroups to make.
	users, err := os.ReadFile("/proc/self/uid_map")
	if fields := strings.Fields(string(users)); err != nil || os.Geteuid() != 0 || len(fields) != 3 || fields[2] != "4294967295" {
		return errors.New("needs root of the machine, not of a user namespace")
	}
	groups, err := cgroupRoot()
	if err == nil {
		err = unix.Access(groups, unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("needs a cgroup2 hierarchy to make a group in: %w", err)
	}
	return nil
}

// Boot has the systemd in root, "/" for the machine's own, run on the node and waits until
// it is up. The daemon that a unit of the package starts there is the node's, and pods
// made from then on are seen inside.
func (n *Node) Boot(ctx context.Context, root string) (*System, error) {
	dir, run := n.lab.path(n.Host, "root"), filepath.Join(runtimeDir(n.lab.Suffix), n.Host)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(run, 0o755)); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	n.socket = filepath.Join(run, "vswitch/vswitch.sock") // /run/vswitch inside
	groups, err := cgroupRoot()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	group := filepath.Join(groups, n.Name) // Close removes it
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	groupFile, err := os.Open(group)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer groupFile.Close()
	init, err := n.Start(Command{Name: "systemd", Path: "sh", Args: []string{"-c", bootScript, "boot", dir, run, n.Host, root}, cgroup: groupFile})
	if err != nil {
		return nil, err
	}
	s := &System{n, init, root}
	for {
		// Until it is systemd that runs there, the root is the machine's own.
		var state []byte
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", init.Pid()))
		if err == nil && string(comm) == "systemd\n" {
			if state, err = s.Exec(ctx, "systemctl", "is-system-running"); err == nil {
				n.system = s
				return s, nil
			}
		}
		select {
		case <-init.Done():
			return nil, fmt.Errorf("lab: node %s: systemd does not run: %w: %s", n.Host, init.err, init.Tail(5))
		case <-ctx.Done():
			return nil, fmt.Errorf("lab: node %s: systemd is not up: %w: %s %s", n.Host, context.Cause(ctx), state, init.Tail(5))
		case <-time.After(20 * time.Millisecond): // between two looks
		}
	}
}

// Exec runs a program inside, to its end.
func (s *System) Exec(ctx context.Context, program string, args ...string) ([]byte, error) {
	if s.init.state() != "running" { // its number may be another's
		return nil, fmt.Errorf("lab: %s on %s: systemd has ended: %s", program, s.node.Host, s.init.state())
	}
	inside := []string{"--target", strconv.Itoa(s.init.Pid()), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--", program}
	return s.node.Exec(ctx, Command{
		Name: program, Path: "nsenter", Args: append(inside, args...), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"},
	})
}

// show has a network namespace at the same path inside as outside.
func (s *System) show(n *Namespace) error {
	err := errors.Join(os.MkdirAll(s.Path(filepath.Dir(n.Path)), 0o755), os.WriteFile(s.Path(n.Path), nil, 0o444))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	inside, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.init.Pid()))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer inside.Close()
	return onThrowawayThread(func() error {
		mount, err := unix.OpenTree(unix.AT_FDCWD, n.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("lab: namespace %s: open_tree: %w", n.Name, err)
		}
		defer unix.Close(mount)
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) wants it
			return fmt.Errorf("lab: unshare: %w", err)
		}
		if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("lab: enter the container of %s: %w", s.node.Host, err)
		}
		if err := unix.MoveMount(mount, "", unix.AT_FDCWD, n.Path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("lab: namespace %s: move_mount: %w", n.Name, err)
		}
		return nil
	})
}

// Path of a file inside, as seen from outside.
func (s *System) Path(inside string) string {
	return filepath.Join("/proc", strconv.Itoa(s.init.Pid()), "root", inside)
}

// Changed lists the files inside that are not in root, or otherwise.
func (s *System) Changed() (map[string]bool, error) {
	changed, top := map[string]bool{}, s.Path("/mnt/changed")
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, top), "/")
		if d.IsDir() {
			// A directory is there as soon as something in it has changed.
			if here, err := os.Lstat(filepath.Join(s.root, name)); err == nil && here.IsDir() {
				return nil
			}
		}
		changed[name] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return changed, nil
}

// cgroupRoot is where the cgroup2 hierarchy is mounted; beside those of version 1 it is
// one without controllers, which is enough to keep processes together.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		// proc_pid_mountinfo(5): the mount point is the fifth field, the type the first
		// behind a hyphen.
		mount, kind, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(kind, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("none is mounted")
}

// removeGroups removes the cgroups of a lab whose processes have ended.
func removeGroups(suffix string) error {
	root, err := cgroupRoot()
	if err != nil {
		return nil // there can't be any
	}
	groups, err := filepath.Glob(filepath.Join(root, namePrefix+suffix+"-*"))
	for _, g := range groups {
		err = errors.Join(err, removeGroup(g))
	}
	return err
}

// removeGroup removes a cgroup and those below. A process that was killed leaves its own
// a moment after its parent knows.
func removeGroup(path string) (err error) {
	for range 50 {
		if err = cgroup.RemoveTree(path); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	return fmt.Errorf("lab: a cgroup that has processes: %w", err)
}
