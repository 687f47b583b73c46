// Package cgroup makes a part of the cgroup tree (cgroups(7), version 2) that one
// command has for itself, as an ordinary user.
//
// It takes what the user has been given, as a systemd session gives it
// (systemd-run --user --scope), and asks nobody: what it needs is a cgroup that this
// process is in and may write.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Own is a cgroup of this process's own, below the one that it was in:
//
//	was              with the controllers enabled that can be
//	└── vswitch-PID
//	    ├── outside  this process and those it starts
//	    └── inside   for who is put there
//
// A cgroup whose controllers are enabled has no processes (cgroups(7), "no internal
// processes"), which is why this process leaves the one it was in. Others that are
// there stay, and keep controllers from it.
type Own struct {
	was, top string
	enabled  []string // controllers, by this

	// Lacks are the controllers that the cgroup it was in has and can't hand down, since
	// other processes are in it too.
	Lacks []string
}

// New makes one, with a name by this process's id.
func New() (*Own, error) {
	was, err := Find()
	if err != nil {
		return nil, err
	}
	return newBelow(was)
}

func newBelow(was string) (*Own, error) {
	for _, name := range []string{".", "cgroup.procs", "cgroup.subtree_control"} {
		if err := unix.Access(filepath.Join(was, name), unix.W_OK); err != nil {
			return nil, fmt.Errorf("the cgroup %s is not this user's to divide: %w", was, err)
		}
	}
	o := &Own{was: was, top: filepath.Join(was, fmt.Sprintf("vswitch-%d", os.Getpid()))}
	for _, dir := range []string{o.top, o.outside(), o.inside()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make a cgroup: %w", err), RemoveTree(o.top))
		}
	}
	if err := enter(o.outside(), os.Getpid()); err != nil {
		return nil, errors.Join(err, RemoveTree(o.top))
	}
	o.enable()
	return o, nil
}

func (o *Own) outside() string { return filepath.Join(o.top, "outside") }
func (o *Own) inside() string  { return filepath.Join(o.top, "inside") }

// Put moves a process in.
func (o *Own) Put(pid int) error { return enter(o.inside(), pid) }

// enable hands down what controllers can be.
func (o *Own) enable() {
	have := words(filepath.Join(o.was, "cgroup.subtree_control"))
	for _, c := range words(filepath.Join(o.was, "cgroup.controllers")) {
		if !slices.Contains(have, c) {
			if control(o.was, "+"+c) != nil {
				o.Lacks = append(o.Lacks, c)
				continue
			}
			o.enabled = append(o.enabled, c)
		}
		if control(o.top, "+"+c) != nil {
			o.Lacks = append(o.Lacks, c)
		}
	}
}

// Remove removes it, once no process is left inside, for which it waits until ctx
// ends; this process is back where it was.
func (o *Own) Remove(ctx context.Context) error {
	if err := waitEmpty(ctx, o.inside()); err != nil {
		return err
	}
	if err := RemoveTree(o.inside()); err != nil {
		return err
	}
	for _, c := range words(filepath.Join(o.top, "cgroup.subtree_control")) {
		if err := control(o.top, "-"+c); err != nil {
			return err
		}
	}
	for _, c := range o.enabled {
		_ = control(o.was, "-"+c) // others below may use it by now
	}
	if err := enter(o.was, os.Getpid()); err != nil {
		return err
	}
	return RemoveTree(o.top)
}

const lookAgainMillis = 100

// waitEmpty waits until no process is in a cgroup or below it.
func waitEmpty(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<12))
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "populated 0") {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("processes are left in the cgroup %s", dir)
		}
		// A change of this file is told as an exceptional condition; after this time it
		// is looked at anyway, and at ctx.
		unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, lookAgainMillis)
	}
}

// RemoveTree removes a cgroup and those below it. Their files are the kernel's.
func RemoveTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := RemoveTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// enter moves a process into a cgroup.
func enter(dir string, pid int) error {
	if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move process %d into its cgroup: %w", pid, err)
	}
	return nil
}

func control(dir, change string) error {
	return write(filepath.Join(dir, "cgroup.subtree_control"), change)
}

func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func words(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// Find is the directory of the cgroup that this process is in.
func Find() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	at, root, err := parseMount(mounts)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		below, err := filepath.Rel(root, path)
		if err != nil || below == ".." || strings.HasPrefix(below, "../") {
			return "", fmt.Errorf("this process's cgroup %s is not below %s", path, at)
		}
		return filepath.Join(at, below), nil
	}
	return "", errors.New("this process is in no cgroup of version 2")
}

// parseMount finds where version 2 is mounted, and from which cgroup on
// (proc_pid_mountinfo(5)).
func parseMount(r io.Reader) (at, root string, err error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		dash := slices.Index(f, "-")
		if dash < 5 || len(f) < dash+2 || f[dash+1] != "cgroup2" {
			continue
		}
		return f[4], f[3], nil
	}
	return "", "", errors.New("no cgroup file system of version 2 is mounted")
}
