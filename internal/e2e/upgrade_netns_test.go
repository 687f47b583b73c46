package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// olderCommit is a version that the present one is to live with: before descriptors
// outlived the keeper, and with the first form of its protocol.
const olderCommit = "f2f39ec"

// olderProgram builds vswitch as of olderCommit, where the history is there.
func olderProgram(t *testing.T) string {
	t.Helper()
	if !labtest.Long() {
		t.Skip("builds an older version, which takes a minute: make test-long")
	}
	root := filepath.Dir(labtest.BinDir(t))
	if err := exec.Command("git", "-C", root, "cat-file", "-e", olderCommit+"^{commit}").Run(); err != nil {
		t.Skipf("needs the history: %s has no commit %s (a shallow clone?)", root, olderCommit)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "vswitch")
	script := fmt.Sprintf(`git -C %[1]s archive %[2]s | tar -x -C %[3]s && cd %[3]s && mkdir older && go build -trimpath -o older/vswitch ./cmd/vswitch && mv older/vswitch %[4]s.older`,
		root, olderCommit, dir, program)
	cmd := exec.Command("bash", "-o", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", olderCommit, err, out)
	}
	return program + ".older"
}

// install puts a program in the place of another at once, as a package manager does.
func install(t *testing.T, program, at string) {
	t.Helper()
	b, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(at+".new", b, 0o755)
	}
	if err == nil {
		err = os.Rename(at+".new", at)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Case 52: two nodes of an older version; the first is upgraded and downgraded while
// connections go on, and the two versions understand each other meanwhile, by tunnel,
// store and state directory. Where a part can't be handed on as it is, that is
// refused with the reason and the old goes on.
func TestVersionsLiveTogether(t *testing.T) {
	need(t, "ping", "git", "tar")
	older := olderProgram(t)
	newer := filepath.Join(labtest.BinDir(t), "vswitch")
	c := newNodes(t, lab.Config{})
	a, b := c.nodes[0], c.nodes[1]
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	place := filepath.Join(t.TempDir(), "vswitch")
	install(t, older, place)
	// The store is on the node that stays.
	storeArgs := []string{"--listen-client", b.StoreURL(), "--insecure"}
	if err := b.StartDaemon(ctx, lab.RunConfig{Store: "embedded", Args: storeArgs, Binary: older, Older: true}); err != nil {
		t.Fatal(err)
	}
	run := lab.RunConfig{Store: "etcd=" + b.StoreURL(), Args: []string{"--insecure"}, Binary: place, Older: true}
	if err := a.StartDaemon(ctx, run); err != nil {
		t.Fatal(err)
	}
	c.addPods()
	for _, p := range []*lab.Pod{c.a2, c.b1} {
		echo(t, p, 7)
	}
	watches := []*watch{
		newWatch(t, "same node", c.a1.Namespace, netip.AddrPortFrom(c.a2.IPv4, 7)),
		newWatch(t, "to the other node", c.a1.Namespace, netip.AddrPortFrom(c.b1.IPv6, 7)),
		newWatch(t, "from the other node", c.b2.Namespace, netip.AddrPortFrom(c.a2.IPv4, 7)),
	}
	works := func(when string) {
		t.Helper()
		for range 2 {
			for _, w := range watches {
				longest, err := w.lap(ctx)
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if longest > time.Second {
					t.Logf("%s: %s: longest round trip %v", when, w.name, longest)
				}
			}
		}
		for _, pair := range [][2]*lab.Pod{{c.a1, c.b1}, {c.b2, c.a2}, {c.a1, c.a2}} {
			for _, family := range []int{4, 6} {
				if err := ping(pair[0], pair[1].IP(family), 20); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
		}
	}
	works("both old")
	for _, step := range []struct{ name, program string }{{"upgrade", newer}, {"downgrade", older}} {
		install(t, step.program, place)
		before, err := a.Dataplane()
		if err != nil {
			t.Fatal(err)
		}
		asked, enough := context.WithTimeout(ctx, 10*time.Second) // the command waits longer for one that was refused
		if out, err := a.Vswitch(asked, "", "upgrade"); err != nil {
			t.Logf("%s: %v %s", step.name, err, out)
		}
		enough()
		after, err := a.Dataplane()
		if err != nil {
			t.Fatal(err)
		}
		refused := strings.Contains(a.Daemon().Log(), "restart refused")
		if before == after && !refused {
			t.Errorf("%s: neither done nor refused with a reason:\n%s", step.name, a.Daemon().Tail(10))
		}
		t.Logf("%s by the keeper of the version before: refused %v", step.name, refused)
		works(step.name + " by the keeper")

		if err := a.Daemon().Stop(); err != nil {
			t.Errorf("%s: stop: %v", step.name, err)
		}
		if err := a.RestartDaemon(ctx); err != nil {
			t.Fatalf("%s: start: %v", step.name, err)
		}
		c.reattach(a)
		if log := a.Daemon().Log(); strings.Contains(log, "damaged") || strings.Contains(log, "lost") {
			t.Errorf("%s: state was lost:\n%s", step.name, log)
		}
		works(step.name + " by a restart")
		late := c.pod(0, step.name, nil)
		if err := ping(late, c.b1.IPv4, 5); err != nil {
			t.Errorf("%s: a pod made then: %v", step.name, err)
		}
	}
}

// An upgrade that can't be is refused with the reason, and the daemon goes on: the
// program in its place no longer understands the configuration, or is none.
func TestAnUpgradeThatIsRefusedSaysWhy(t *testing.T) {
	c := newNodes(t, lab.Config{})
	a := c.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	place, config := filepath.Join(dir, "vswitch"), filepath.Join(dir, "config.yaml")
	program := filepath.Join(labtest.BinDir(t), "vswitch")
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("zone: north")
	install(t, program, place)
	if err := a.StartDaemon(ctx, lab.RunConfig{Args: []string{"--config", config}, Binary: place}); err != nil {
		t.Fatal(err)
	}
	before, err := a.Dataplane()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(want string) {
		t.Helper()
		out, err := a.Vswitch(ctx, "", "upgrade")
		if err == nil || !strings.Contains(err.Error(), "the new program refused") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v %s, want a refusal with %q", err, out, want)
		}
		if after, err := a.Dataplane(); err != nil || after != before {
			t.Errorf("dataplane %v %v, want %v as before", after, err, before)
		}
	}
	configure("zonne: north")
	refused("zonne")
	configure("zone: north")
	install(t, os.DevNull, place)
	refused("exec format error")
	install(t, program, place)
	if out, err := a.Vswitch(ctx, "", "upgrade"); err != nil {
		t.Errorf("an upgrade after those that were refused: %v %s", err, out)
	}
}
