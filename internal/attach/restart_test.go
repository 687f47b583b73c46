package attach

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"vswitch/internal/fdstore"
	"vswitch/tap"
	"vswitch/vswitch"
)

// What the next daemon makes of the records, of the fd store and of the leases.

func TestRestartLeavesPodsDetachedAndReattachable(t *testing.T) {
	b := newBench(t)
	a := b.attach("c1")
	b.add("pending")
	b.ports.open, b.fds = map[uint32]vswitch.PortConfig{}, &fdstore.Memory{} // what a process takes with it
	clear(b.routes)
	clear(b.pods.published)
	b.cfg.FDs = b.fds
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	if got := b.state("pending"); got != "gone" {
		t.Errorf("the pending one is %s, its lease %v", got, b.leases.held)
	}
	if lost, err := b.Lost(); !errors.Is(err, ErrNotReady) {
		t.Errorf("lost before the kept ones are open again: %v, %v", lost, err)
	}
	all := b.Restore()
	b.add("coming")
	if lost, err := b.Lost(); err != nil || len(lost) != 1 || lost[0].ContainerID != "c1" {
		t.Errorf("lost %v, %v; want c1 alone", lost, err)
	}
	if len(all) != 1 || all[0].State != Detached || all[0].Token == "" || all[0].Token == a.Token {
		t.Fatalf("restored %+v", all)
	}
	if !slices.Equal(all[0].Addrs, a.Addrs) || all[0].MAC != a.MAC || all[0].Netns != a.Netns {
		t.Errorf("got %+v, want the addresses of %+v", all[0], a)
	}
	if err := b.Attach(all[0].Token, tap.VNet, b.queueFDs(2)); err != nil {
		t.Fatal(err)
	}
	if got := b.state("c1"); got != "attached" {
		t.Errorf("after reattach: %s", got)
	}
}

func TestRestartUnderAKeeperRestoresByItself(t *testing.T) {
	b := newBench(t)
	b.attach("c1")
	// As a process leaves it that is killed between the store and the record.
	stray, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	for _, name := range []string{"tap/c2/eth0", "udp/1"} {
		if err := b.fds.Put(name, []int{int(stray.Fd())}); err != nil {
			t.Fatal(err)
		}
	}
	b.ports.open = map[uint32]vswitch.PortConfig{} // the process is gone, the fd store is not
	clear(b.routes)
	clear(b.pods.published)
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	b.Restore()
	if names, err := b.fds.Names(); err != nil || !slices.Equal(names, []string{"tap/c1/eth0", "udp/1"}) {
		t.Errorf("the fd store holds %v (%v), want the pod's queues and what is not a pod's", names, err)
	}
	if got := b.state("c1"); got != "attached" {
		t.Errorf("%s, want attached", got)
	}
	if lost, err := b.Lost(); err != nil || len(lost) != 0 {
		t.Errorf("lost %v, %v; want nothing", lost, err)
	}
}

func TestAnotherBootBeginsAnew(t *testing.T) {
	b := newBench(t)
	b.attach("c1")
	b.file.BootID = "boot-2"
	b.restart()
	if all := b.List(); len(all) != 0 {
		t.Errorf("attachments of the last boot: %+v", all)
	}
}

func TestDamagedRecordsAreAColdStart(t *testing.T) {
	b := newBench(t)
	b.attach("c1")
	if err := os.WriteFile(b.file.Path, []byte(`{"kind":"attachments","ver`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if all := b.List(); len(all) != 0 {
		t.Errorf("attachments: %+v", all)
	}
}

func TestOfTwoPodsWithOneAddressOneIsDropped(t *testing.T) {
	b := newBench(t)
	a := b.attach("c1")
	other := a
	other.ContainerID = "c2"
	if err := b.cfg.Records.Save([]Attachment{a, other}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	if all := b.List(); len(all) != 1 {
		t.Errorf("attachments %v, want one", all)
	}
}

// The file of the leases is behind: a daemon was killed before it was written.
func TestLeasesFollowTheRecordsAfterARestart(t *testing.T) {
	b := newBench(t)
	a := b.attach("c1")
	gone := b.attach("gone")
	if err := b.Delete(gone.Key); err != nil {
		t.Fatal(err)
	}
	b.leases.held = map[string][]netip.Addr{holder(gone.Key): a.Addrs} // as they once were
	b.restart()
	if err := b.Serve(b.leases); err != nil {
		t.Fatal(err)
	}
	if len(b.leases.held) != 1 || !slices.Equal(b.leases.held[holder(a.Key)], a.Addrs) {
		t.Errorf("leases %v, want those of c1, %v", b.leases.held, a.Addrs)
	}
}
