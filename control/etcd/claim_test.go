package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vswitch/control"
)

func TestNodesClaimPrefixesOfBothFamilies(t *testing.T) {
	s := newServer(t)
	for i, want := range []string{"[10.244.0.0/24 fd00:10:244::/64]", "[10.244.1.0/24 fd00:10:244:1::/64]"} {
		name := fmt.Sprintf("node-%d", i)
		st := s.store(name)
		if got := fmt.Sprint(s.claim(st, name).PodCIDRs); got != want {
			t.Errorf("%s got %s, want %s", name, got, want)
		}
		// Said again, with another start of the daemon and without its memory.
		if got := fmt.Sprint(s.claim(s.store(name), name).PodCIDRs); got != want {
			t.Errorf("%s got %s the second time, want %s", name, got, want)
		}
	}
}

func TestASecondMachineOfOneNameIsRefused(t *testing.T) {
	s := newServer(t)
	s.claim(s.store("a"), "one")
	_, err := s.store("a").ClaimNode(s.context(), claimOf("a", "two"))
	var conflict *control.ConflictError
	if !errors.As(err, &conflict) {
		t.Fatalf("%v, want a *ConflictError", err)
	}
	wantError(t, err, "node name a", "192.0.2.1", "--node", "vswitch delete node a")
}

func TestANodeMustAgreeWithItsCluster(t *testing.T) {
	s := newServer(t)
	s.claim(s.store("a"), "one")
	c := claimOf("b", "two")
	c.ClusterCIDRs = c.ClusterCIDRs[:1]
	_, err := s.store("b").ClaimNode(s.context(), c)
	wantError(t, err, "--cluster-cidr [10.244.0.0/16]", "[10.244.0.0/16 fd00:10:244::/48]", "the same on every node")
	c = claimOf("b", "two")
	c.BitsIPv4 = 25
	_, err = s.store("b").ClaimNode(s.context(), c)
	wantError(t, err, "--node-cidr-size-v4 25", "24")
}

// Many nodes at once: no prefix is given twice (case 57).
func TestConcurrentClaimsAreDistinct(t *testing.T) {
	s := newServer(t)
	const nodes = 12
	claims := make([]control.Claim, nodes)
	var wg sync.WaitGroup
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		st := s.store(name)
		wg.Go(func() {
			var err error
			if claims[i], err = st.ClaimNode(s.context(), claimOf(name, name)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	holder := map[netip.Prefix]string{}
	for _, c := range claims {
		for _, p := range c.PodCIDRs {
			if other, ok := holder[p]; ok {
				t.Errorf("%s is %s's and %s's", p, other, c.Node)
			}
			holder[p] = c.Node
		}
	}
	if len(holder) != 2*nodes {
		t.Errorf("%d prefixes, want %d", len(holder), 2*nodes)
	}
}

func TestClaimWaitsForTheStore(t *testing.T) {
	s := newServer(t)
	s.stop()
	st := s.store("a")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := st.ClaimNode(ctx, claimOf("a", "one"))
	if !errors.Is(err, control.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	s.start()
	s.claim(st, "one")
}

// A claim outlives its node's lease, and the store's data: a store that lost
// everything gives each node what it had.
func TestClaimsOutliveLeasesAndWipes(t *testing.T) {
	s := newServer(t)
	a := s.node("a")
	b := s.node("b")
	a.view.await(t, "both leases", has(leaseKey("a"), leaseKey("b")))
	b.stop()
	a.view.await(t, "the end of b's lease", func(v *view) bool {
		return v.objs[leaseKey("b")] == nil && v.objs[nodeKey("b")] != nil
	})
	if got := fmt.Sprint(s.claim(s.store("c"), "c").PodCIDRs[0]); got != "10.244.2.0/24" {
		t.Errorf("c got %s, want 10.244.2.0/24: b's claim stands", got)
	}

	before := 0
	a.view.await(t, "the lists until now", func(v *view) bool { before = v.resets; return true })
	s.wipe()
	a.view.await(t, "a in the new store, with its lease", func(v *view) bool {
		return v.resets > before && has(nodeKey("a"), leaseKey("a"))(v)
	})
	if got := fmt.Sprint(s.claim(s.store("d"), "d").PodCIDRs[0]); got != "10.244.1.0/24" {
		t.Errorf("d got %s, want 10.244.1.0/24: a has its own again", got)
	}
	// b comes back late, with what it remembers; that is d's now.
	late := claimOf("b", "instance of b")
	late.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}
	_, err := s.store("b").ClaimNode(s.context(), late)
	wantError(t, err, "pod CIDR 10.244.1.0/24", "Node d")
}

func TestANodeThatIsGoneIsDeletedAndItsPrefixFreed(t *testing.T) {
	s := newServer(t)
	a, b := s.node("a"), s.node("b")
	b.PublishPod(pod("b", "web"))
	key := control.PodKey("b", "c-web", "eth0")
	a.view.await(t, "b with its lease and pod", has(leaseKey("b"), key))

	err := a.Delete(s.context(), control.KindNode, "", "b")
	wantError(t, err, "node name b", "renews its lease", "stop that one first")
	b.stop()
	// Its lease still runs: the deletion waits for the end.
	if err := a.Delete(s.context(), control.KindNode, "", "b"); err != nil {
		t.Fatal(err)
	}
	a.view.await(t, "no more of b", func(v *view) bool { return v.objs[nodeKey("b")] == nil && v.objs[key] == nil })
	if got := fmt.Sprint(s.claim(s.store("c"), "c").PodCIDRs[0]); got != "10.244.1.0/24" {
		t.Errorf("c got %s, want what b had", got)
	}
	if err := a.Delete(s.context(), control.KindNode, "", "b"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("second deletion: %v, want ErrNotFound", err)
	}
}

func TestASilentNodeIsFreedAfterTheGrace(t *testing.T) {
	s := newServer(t)
	short := func(c *Config) { c.CIDRGrace = 2 * time.Second }
	a, b := s.node("a", short), s.node("b", short)
	a.view.await(t, "both leases", has(leaseKey("a"), leaseKey("b")))
	b.stop()
	a.view.await(t, "b's record to go", hasNot(nodeKey("b")))
	a.view.mu.Lock()
	defer a.view.mu.Unlock()
	if a.view.objs[nodeKey("a")] == nil {
		t.Error("a's own record went as well")
	}
}

// A node whose claim was given away stops publishing and says so.
func TestRunEndsWhenTheClaimIsLost(t *testing.T) {
	s := newServer(t)
	a := s.node("a")
	a.view.await(t, "a's lease", has(leaseKey("a")))
	// What deleting node a and another machine of that name come to.
	thief, err := encode(control.NewNode(claimOf("a", "another")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.Put(s.context(), a.key("nodes", "a"), thief); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-a.ended:
		wantError(t, err, "node name a")
	case <-time.After(30 * time.Second):
		t.Error("Run goes on although the node's claim is another's")
	}
}
