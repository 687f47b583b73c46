package attach

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vswitch/tap"
)

// Attachments that go without a DEL.

func TestPendingExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		a := b.add("c1")
		time.Sleep(59 * time.Second)
		b.Sweep(time.Now())
		if got := b.state("c1"); got != "pending" {
			t.Fatalf("before the timeout: %s", got)
		}
		time.Sleep(2 * time.Second)
		b.Sweep(time.Now())
		if got := b.state("c1"); got != "gone" {
			t.Fatalf("after the timeout: %s", got)
		}
		if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); !errors.Is(err, ErrToken) {
			t.Errorf("late queues: %v, want ErrToken", err)
		}
		b.leaks()
	})
}

func TestDeviceDied(t *testing.T) {
	b := newBench(t)
	a := b.attach("c1")
	b.Died("default/other/c9/eth0", errors.New("no such device"))
	if got := b.state("c1"); got != "attached" {
		t.Fatalf("after another's death: %s", got)
	}
	b.Died(a.Port, errors.New("no such device"))
	if got := b.state("c1"); got != "detached" {
		t.Fatalf("%s, want detached", got)
	}
	if err := b.Delete(a.Key); err != nil {
		t.Fatal(err)
	}
	b.leaks()
}

func TestNamespaceGoneWithoutDEL(t *testing.T) {
	for _, tt := range []struct{ name, seen string }{
		{"there at ADD and gone before anybody looked again", "at ADD"},
		{"seen later, and gone", "by a sweep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			r := request("c1")
			r.Netns = filepath.Join(t.TempDir(), "ns")
			appears := func() {
				if err := os.WriteFile(r.Netns, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.seen == "at ADD" {
				appears()
			}
			a, err := b.Add(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Attach(a.Token, tap.VNet, b.queueFDs(2)); err != nil {
				t.Fatal(err)
			}
			b.attach("never-seen") // its path is in a mount namespace that we are not in
			if tt.seen == "by a sweep" {
				appears()
				b.Sweep(time.Now())
			}
			if err := os.Remove(r.Netns); err != nil {
				t.Fatal(err)
			}
			b.Sweep(time.Now())
			if got := b.state("c1"); got != "attached" {
				t.Fatalf("missed once: %s", got)
			}
			b.Sweep(time.Now())
			if got := b.state("c1"); got != "gone" {
				t.Errorf("missed twice: %s", got)
			}
			if got := b.state("never-seen"); got != "attached" {
				t.Errorf("the one whose path was never seen: %s", got)
			}
		})
	}
}

func TestGCRemovesTheStaleOfItsNetworkOnly(t *testing.T) {
	b := newBench(t)
	b.attach("keep")
	b.attach("stale")
	b.add("stale-pending")
	other := request("other")
	other.Network = "another"
	if _, err := b.Add(other); err != nil {
		t.Fatal(err)
	}
	removed, failed := b.GC("vswitch", []Key{{ContainerID: "keep", Ifname: "eth0"}})
	var ids []string
	for _, a := range removed {
		ids = append(ids, a.ContainerID)
		if a.Token != "" {
			t.Errorf("%s: the reply has a token", a.ContainerID)
		}
	}
	if slices.Sort(ids); !slices.Equal(ids, []string{"stale", "stale-pending"}) || len(failed) != 0 {
		t.Errorf("removed %v, failed %v", ids, failed)
	}
	if got := b.state("keep"); got != "attached" {
		t.Errorf("keep: %s", got)
	}
	if _, err := b.Get(other.Key); err != nil {
		t.Errorf("of another network: %v", err)
	}
}

func TestGCGoesOnAfterAnError(t *testing.T) {
	b := newBench(t)
	b.attach("c1")
	if err := b.ports.RemovePort(b.ports.next); err != nil { // the switch has lost it
		t.Fatal(err)
	}
	b.attach("c2")
	removed, failed := b.GC("vswitch", nil)
	if len(removed) != 1 || removed[0].ContainerID != "c2" || len(failed) != 1 || failed[0].Key.ContainerID != "c1" {
		t.Errorf("removed %v, failed %v", removed, failed)
	}
	b.leaks()
}
