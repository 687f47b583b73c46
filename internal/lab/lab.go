// Package lab builds small networks out of Linux network namespaces: nodes on
// an underlay, pods made by the real CNI plugin, a machine outside, and the
// kernel's own bridge and VXLAN to compare with.
//
// It serves the demo, the end-to-end tests and the benchmarks; the product
// never imports it. It drives the product only as a user can, through its
// binaries. It needs CAP_SYS_ADMIN and CAP_NET_ADMIN over its user namespace:
// root has them, and an ordinary user gets them from EnterUserNamespace.
//
// Everything a Lab makes carries its random suffix and is gone after Close.
// Where a process is killed before it can close, its children die with it and
// the next Lab sweeps the namespaces it left.
package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The underlay's addresses: documentation ranges (RFC 5737, RFC 3849).
var (
	underlay4 = netip.MustParsePrefix("192.0.2.0/24")
	underlay6 = netip.MustParsePrefix("2001:db8::/64")

	// Addresses that only the outside machine has, reached through its underlay
	// address as the nodes' default route: "the world" as pods see it.
	World4 = netip.MustParseAddr("198.51.100.1")
	World6 = netip.MustParseAddr("2001:db8:1::1")
)

// Host numbers in the underlay: nodes count up from firstNode.
const (
	firstNode   = 11
	outsideHost = 254
)

// stopTimeout is how long a process has between SIGTERM and SIGKILL.
const stopTimeout = 5 * time.Second

// Config says what the lab's underlay is like and where the binaries are.
type Config struct {
	// BinDir holds vswitch and vswitch-cni. Empty: only what needs neither works.
	BinDir string
	// MTUBytes of the underlay; 0: 1500.
	MTUBytes int
	// NoIPv4 and NoIPv6 leave a family out of the underlay, not both.
	NoIPv4, NoIPv6 bool
	// Confine is daemons' --confine, where their arguments don't say; empty: its default.
	Confine string
	// Offload is set on every underlay link.
	Offload Offload
	// Logf gets a line for each thing made; nil: silence.
	Logf func(format string, args ...any)
}

func (c *Config) validate() error {
	if c.NoIPv4 && c.NoIPv6 {
		return errors.New("lab: an underlay needs IPv4 or IPv6")
	}
	if c.MTUBytes == 0 {
		c.MTUBytes = 1500
	}
	if min := 1280; c.MTUBytes < min && !c.NoIPv6 {
		return fmt.Errorf("lab: MTU %d is below IPv6's minimum, %d", c.MTUBytes, min)
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	return nil
}

// Lab is one isolated set of namespaces and processes. Its methods may be
// called by several goroutines unless they say otherwise.
type Lab struct {
	// Suffix marks everything this lab made.
	Suffix string
	// Dir holds logs, sockets and state directories; short enough for unix
	// socket paths, and removed by Close.
	Dir string

	cfg         Config
	nsDir       string
	lock        *os.File // held while the lab lives; see sweep
	spawner     *spawner
	hereSpawner *spawner // of this process's own network namespace

	mu        sync.Mutex
	spaces    []*Namespace
	processes []*Process
	nodes     []*Node
	bridge    *Namespace // the underlay's own namespace
	outside   *Node
	closed    bool
}

// New makes an empty lab: no namespace yet.
func New(cfg Config) (*Lab, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	var random [3]byte
	rand.Read(random[:])
	l := &Lab{Suffix: hex.EncodeToString(random[:]), cfg: cfg}
	l.Dir = labDir(l.Suffix)
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	err := l.open()
	if err != nil {
		os.RemoveAll(l.Dir)
		return nil, err
	}
	return l, nil
}

// open declares the lab alive and starts its thread.
func (l *Lab) open() (err error) {
	if err = sweep(); err != nil {
		return err
	}
	if l.nsDir, err = namespaceDir(l.Dir); err != nil {
		return err
	}
	if l.lock, err = declare(l.Suffix); err != nil {
		return err
	}
	l.spawner, l.hereSpawner = newSpawner(), newSpawner()
	return nil
}

// Close ends every process, by pid, and removes every namespace and file the
// lab made. It may be called twice, and at any time: also from a signal handler
// while another goroutine still works in the lab, whose calls then fail.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	processes, spaces := l.processes, l.spaces
	l.mu.Unlock()

	var errs []error
	// Latest first: clients before daemons, daemons before what they stand on.
	for i := len(processes) - 1; i >= 0; i-- {
		processes[i].requestStop()
	}
	deadline := time.After(stopTimeout)
	for i := len(processes) - 1; i >= 0; i-- {
		select {
		case <-processes[i].done:
		case <-deadline:
			deadline = closedTimer // the others have had their time as well
			errs = append(errs, fmt.Errorf("lab: %s did not stop within %v of SIGTERM: killed", processes[i].Name, stopTimeout))
		}
		processes[i].killGroup() // a child left behind, the process itself at worst
		<-processes[i].done
	}
	l.spawner.stop()
	l.hereSpawner.stop()
	for i := len(spaces) - 1; i >= 0; i-- {
		errs = append(errs, spaces[i].close())
	}
	errs = append(errs, removeGroups(l.Suffix), os.RemoveAll(l.Dir), os.RemoveAll(runtimeDir(l.Suffix)))
	undeclare(l.Suffix, l.lock)
	return errors.Join(errs...)
}

// closedTimer is a deadline that has passed.
var closedTimer = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()

// Failures is what the log of every process says last:
// for the output of a failed test.
func (l *Lab) Failures(lines int) string {
	l.mu.Lock()
	processes := append([]*Process(nil), l.processes...)
	l.mu.Unlock()
	var out []byte
	for _, p := range processes {
		if p.LogPath == "" {
			continue
		}
		if tail := p.Tail(lines); tail != "" {
			out = fmt.Appendf(out, "--- %s, pid %d, %s, last %d lines of its log:\n%s\n", p.Name, p.Pid(), p.state(), lines, tail)
		}
	}
	return string(out)
}

// BinDir holds the product's programs.
func (l *Lab) BinDir() string { return l.cfg.BinDir }

// Nodes are the nodes added so far, in order.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// labDir is where the lab of a suffix keeps its files.
func labDir(suffix string) string { return filepath.Join(os.TempDir(), namePrefix+suffix) }

// runtimeDir is where its daemons keep what a boot's /run is for: on a tmpfs, as that.
func runtimeDir(suffix string) string { return filepath.Join("/dev/shm", namePrefix+suffix) }

// path is a file name in the lab's directory.
func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}
