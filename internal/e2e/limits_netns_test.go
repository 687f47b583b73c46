package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
)

// Case 54: what a node does when it runs out of something, or its dataplane can't
// stay up. Connections there are go on wherever a dataplane runs; what can't be done
// is refused in words, and can be done again once there is room.
func TestANodeRunsOutOf(t *testing.T) {
	c := newNodes(t, lab.Config{})
	a, b := c.nodes[0], c.nodes[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := a.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: []string{"--listen-client", a.StoreURL(), "--insecure"}}); err != nil {
		t.Fatal(err)
	}
	// Its state lies on a disk of its own, which nobody else sees.
	mount := fmt.Sprintf(`mount -t tmpfs -o size=512k tmpfs %s; exec "$@"`, b.StateDir())
	if err := b.StartDaemon(ctx, lab.RunConfig{
		Store: "etcd=" + a.StoreURL(), Args: []string{"--insecure"},
		Wrapper: []string{"unshare", "--mount", "sh", "-ec", mount, "sh"},
	}); err != nil {
		t.Fatal(err)
	}
	c.addPods()
	echo(t, c.a1, 7)
	echo(t, c.b2, 7)
	l := &limited{cluster: c, node: b, watches: []*watch{
		newWatch(t, "to another node", c.b1.Namespace, netip.AddrPortFrom(c.a1.IPv4, 7)),
		newWatch(t, "same node", c.b1.Namespace, netip.AddrPortFrom(c.b2.IPv6, 7)),
	}}
	l.goesOn(t, "before")
	t.Run("disk", l.testDisk)
	t.Run("descriptors", l.testDescriptors)
	t.Run("a dataplane that dies at once, again and again", l.testCrashLoop)
	t.Run("memory", l.testMemory)
}

type limited struct {
	*cluster
	node    *lab.Node
	watches []*watch
}

// goesOn sees that messages went through since it was asked last, or do now.
func (l *limited) goesOn(t *testing.T, when string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	for range 2 { // what went through before it was asked counts once
		for _, w := range l.watches {
			if longest, err := w.lap(ctx); err != nil {
				t.Fatalf("%s: %v", when, err)
			} else if longest > time.Second {
				t.Logf("%s: %s: longest round trip %v", when, w.name, longest)
			}
		}
	}
}

func (l *limited) dataplane(t *testing.T) int {
	t.Helper()
	var pid int
	l.in(t).eventually("a dataplane runs", func() (err error) { pid, err = l.node.Dataplane(); return err })
	return pid
}

// add tries to make a pod, and wants it refused, in words, if one is given; nothing is
// left of it then.
func (l *limited) add(t *testing.T, name, refusal string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := l.node.NewPod(lab.PodSpec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = p.Add(ctx)
	switch {
	case refusal == "" && err != nil:
		t.Errorf("ADD of %s: %v", name, err)
	case refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)):
		t.Errorf("ADD of %s: %v; want it refused for %q", name, err, refusal)
	case refusal != "":
		t.Logf("refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
		if out, err := p.Exec(ctx, lab.Command{Path: "ip", Args: []string{"-o", "link", "show", "type", "tun"}}); err != nil || len(out) > 0 {
			t.Errorf("left of a refused pod: %s %v", out, err)
		}
	}
	if err := p.Delete(ctx); err != nil && refusal == "" {
		t.Errorf("DEL of %s: %v", name, err)
	}
}

// kill kills the dataplane and waits for the next.
func (l *limited) kill(t *testing.T) {
	t.Helper()
	pid := l.dataplane(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.in(t).eventually("another dataplane", func() error {
		if next := l.dataplane(t); next == pid {
			return fmt.Errorf("still process %d", pid)
		}
		_, err := l.node.Vswitch(t.Context(), "", "version")
		return err
	})
}

func (l *limited) testDisk(t *testing.T) {
	// The directory as the daemon sees it (proc_pid_root(5)).
	dir := fmt.Sprintf("/proc/%d/root%s", l.node.Daemon().Pid(), l.node.StateDir())
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filler)
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filled the disk: %v", err)
	}
	l.add(t, "no-room", "no space left on device (CNI code 11)") // to be tried again later
	l.goesOn(t, "the disk is full")
	l.kill(t)
	l.goesOn(t, "killed while the disk is full")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.add(t, "room", "")
}

// limit lets a process open no descriptor more, all below being taken, and returns what
// undoes that.
func limit(t *testing.T, pid int) (undo func()) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	const taken = 8
	if len(fds) < taken {
		t.Fatalf("process %d has %d descriptors", pid, len(fds))
	}
	var old unix.Rlimit
	set := func(now, before *unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, now, before); err != nil {
			t.Fatal(err)
		}
	}
	set(nil, &old)
	set(&unix.Rlimit{Cur: taken, Max: old.Max}, nil)
	return func() { t.Helper(); set(&old, nil) }
}

func (l *limited) testDescriptors(t *testing.T) {
	undo := limit(t, l.node.Daemon().Pid())
	l.add(t, "no-keeper", "descriptors lost")
	l.goesOn(t, "the keeper is out of descriptors")
	undo()
	l.add(t, "keeper", "")

	undo = limit(t, l.dataplane(t)) // which can't even say that it refuses: its clients wait
	l.goesOn(t, "the dataplane is out of descriptors")
	undo()
	l.add(t, "dataplane", "")
	l.goesOn(t, "with descriptors again")
}

// testCrashLoop kills each dataplane as soon as it is there. The keeper's pauses grow;
// once nobody kills any more one stays, with all the connections.
func (l *limited) testCrashLoop(t *testing.T) {
	const deaths = 6 // with pauses that add up to 1.5 s
	before := 0
	for range deaths {
		l.in(t).eventually("another dataplane, which dies", func() error {
			pid, err := l.node.Dataplane()
			if err == nil && pid == before {
				err = fmt.Errorf("still process %d", pid)
			}
			if err != nil {
				return err
			}
			before = pid
			return syscall.Kill(pid, syscall.SIGKILL)
		})
	}
	began := time.Now()
	l.in(t).within(10*time.Second, "a dataplane stays", func() error { _, err := l.node.Vswitch(t.Context(), "", "version"); return err })
	t.Logf("%d dataplanes died; one stays after %v", deaths, time.Since(began).Round(time.Millisecond))
	l.goesOn(t, "after the crash loop")
}

// testMemory wants the kernel, should memory be short, to take the dataplane and not the
// keeper, which holds what brings the next one up: it takes the one of the higher score
// (proc_pid_oom_score(5)). One that it took is one that was killed.
func (l *limited) testMemory(t *testing.T) {
	score := func(pid int) (n int) {
		t.Helper()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score", pid))
		if err == nil {
			_, err = fmt.Sscan(string(text), &n)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	keeper, dataplane := l.node.Daemon().Pid(), l.dataplane(t)
	if k, d := score(keeper), score(dataplane); d <= k {
		t.Errorf("oom_score of the dataplane is %d, of the keeper %d: the kernel takes the keeper first", d, k)
	}
}
