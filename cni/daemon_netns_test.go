package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/cni/cnitest"
	"vswitch/control/api"
)

// TestDelWithoutWhatItDeletes is the rest of case 69.
func TestDelWithoutWhatItDeletes(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)

	h.must(h.good("DEL", "never", n)) // no ADD
	h.must(h.good("DEL", "never", nil))

	h.must(h.good("ADD", "c1", n)) // without a previous result, and without a namespace
	h.must(h.good("DEL", "c1", nil))
	h.wantClean()
	h.must(h.good("DEL", "c1", n)) // which leaves the TAP to this
	h.wantClean(n)

	gone := cnitest.NewNetns(t) // the namespace deleted, its path still a file
	h.must(h.good("ADD", "c2", gone))
	gone.Remove()
	h.must(h.good("DEL", "c2", gone))
	c := h.good("DEL", "c2", nil) // or not even that
	c.netns = gone.Path + ".none"
	h.must(c)
	h.wantClean(n)

	c = h.good("DEL", "c1", n) // a configuration that changed since
	c.stdin = h.conf(`,"bridge":"br0","args":[],"prevResult":5`)
	h.must(c)
}

// TestDelWithTheDaemonDown: the address comes back when the daemon does.
func TestDelWithTheDaemonDown(t *testing.T) {
	h := newHost(t, cnitest.Config{Addresses: 1})
	n := cnitest.NewNetns(t)
	h.must(h.good("ADD", "c1", n))
	h.daemon.Stop()
	for range 2 {
		h.must(h.good("DEL", "c1", n))
	}
	if names := linkNames(t, n); strings.Join(names, " ") != "lo" {
		t.Errorf("interfaces %v: the TAP needs no daemon to go", names)
	}
	h.fails(h.good("ADD", "c2", n), 11, "")
	h.daemon.Start()
	h.wantClean(n)
	h.must(h.good("ADD", "c2", n)) // there is only one address
	h.must(h.good("DEL", "c2", n))
	h.wantClean(n)
	if left, err := api.Tombstones(h.daemon.Socket); len(left) > 0 || err != nil {
		t.Errorf("tombstones left: %v, %v", left, err)
	}
}

// TestDelThatCannotBeRemembered is to be repeated.
func TestDelThatCannotBeRemembered(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	h.must(h.good("ADD", "c1", cnitest.NewNetns(t)))
	h.daemon.Stop()
	// A file where the directory would be: root can write anywhere else.
	if err := os.WriteFile(api.TombstoneDir(h.daemon.Socket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.fails(h.good("DEL", "c1", nil), 11, "tombstone")
	h.daemon.Fail("DelPod", status.Error(codes.Unavailable, "closing"))
	if err := os.Remove(api.TombstoneDir(h.daemon.Socket)); err != nil {
		t.Fatal(err)
	}
	h.daemon.Start()
	h.fails(h.good("DEL", "c1", nil), 11, "closing") // a daemon is there: no success yet
	h.daemon.Fail("DelPod", nil)
	h.must(h.good("DEL", "c1", nil))
	h.wantClean()
	if left, _ := api.Tombstones(h.daemon.Socket); len(left) > 0 {
		t.Errorf("tombstones left: %v", left)
	}
}

// TestATombstoneDoesNotOutliveItsAttachment: a DEL was killed after the daemon
// had carried it out and before it removed its tombstone. The pod that comes next
// under the same name must not die of it.
func TestATombstoneDoesNotOutliveItsAttachment(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	key := api.AttachmentKey{Network: "net", ContainerID: "c1", Ifname: "eth0"}
	if err := api.WriteTombstone(h.daemon.Socket, key); err != nil {
		t.Fatal(err)
	}
	h.must(h.good("ADD", "c1", n))
	h.daemon.Stop()
	h.daemon.Start()
	if a := h.daemon.Attachments(); len(a) != 1 {
		t.Errorf("recorded %v, want c1", a)
	}
}

func TestStatus(t *testing.T) {
	h := newHost(t, cnitest.Config{Addresses: 1})
	n := cnitest.NewNetns(t)
	c := h.good("STATUS", "", nil)
	c.ifname = ""
	h.must(c)
	h.daemon.SetNotReady("no pod CIDR yet")
	h.fails(c, 50, "no pod CIDR yet")
	h.daemon.SetNotReady("")

	h.must(h.good("ADD", "c1", n)) // the only address
	h.fails(c, 50, "no address is free")
	h.fails(h.good("ADD", "c2", cnitest.NewNetns(t)), 11, "no address is free")
	h.must(h.good("DEL", "c1", n))
	h.must(c)
	h.must(h.good("ADD", "c2", n))

	h.daemon.Stop()
	h.fails(c, 51, "")
	c.stdin = h.conf(`,"bridge":"br0"`) // no ADD would work with this either
	h.fails(c, 2, "bridge")
}

// TestGC is case 72, through libcni.
func TestGC(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	ctx := context.Background()
	list := h.list("1.1.0")
	var spaces []*cnitest.Netns
	for i := range 4 {
		n := cnitest.NewNetns(t)
		spaces = append(spaces, n)
		h.must(h.good("ADD", fmt.Sprintf("c%d", i), n)) // not by libcni, which would DEL them itself
	}
	other := h.good("ADD", "c9", cnitest.NewNetns(t)) // another network's
	other.stdin = strings.Replace(other.stdin, `"net"`, `"other"`, 1)
	h.must(other)

	h.daemon.Fail("GC:c1", errors.New("stuck"))
	err := h.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c0", IfName: "eth0"}}})
	if err == nil || !strings.Contains(err.Error(), "c1/eth0: stuck") {
		t.Errorf("got %v, want it to name what failed", err)
	}
	h.wantRecorded("c0", "c1", "c9")
	for i, want := range []string{"lo eth0", "lo eth0", "lo", "lo"} {
		if got := strings.Join(linkNames(t, spaces[i]), " "); got != want {
			t.Errorf("c%d has %s, want %s", i, got, want)
		}
	}
	wantPings(t, spaces[0], "eth0")

	c := h.good("GC", "", nil)
	h.fails(c, 7, "valid-attachments") // no list isn't an empty one
	h.wantRecorded("c0", "c1", "c9")

	h.daemon.Fail("GC:c1", nil)
	if err := h.cni.GCNetworkList(ctx, list, &libcni.GCArgs{}); err != nil {
		t.Error(err)
	}
	h.wantRecorded("c9")

	h.daemon.Stop()
	c.stdin = h.conf(`,"cni.dev/valid-attachments":[]`)
	h.fails(c, 11, "")
}

// TestGCLeavesANamespaceThatIsAnothersNow: the recorded path was taken over.
func TestGCLeavesANamespaceThatIsAnothersNow(t *testing.T) {
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	h.must(h.good("ADD", "old", n))
	h.must(h.good("DEL", "old", n))
	h.must(h.good("ADD", "first", cnitest.NewNetns(t))) // takes old's address and MAC
	h.must(h.good("ADD", "second", n))                  // and this its namespace
	h.daemon.Record("old", n.Path, "02:00:00:00:00:99") // as if DEL had never come
	c := h.good("GC", "", nil)
	c.stdin = h.conf(`,"cni.dev/valid-attachments":[{"containerID":"first","ifname":"eth0"},{"containerID":"second","ifname":"eth0"}]`)
	h.must(c)
	h.wantRecorded("first", "second")
	wantPings(t, n, "eth0")
}

func (h *host) wantRecorded(ids ...string) {
	h.t.Helper()
	var got []string
	for _, a := range h.daemon.Attachments() {
		got = append(got, a.Key.ContainerId)
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		h.t.Errorf("recorded %v, want %v", got, ids)
	}
}

func TestReattach(t *testing.T) {
	for _, config := range []cnitest.Config{{Queues: 3}, {Queues: 1, Plain: true}} {
		t.Run(fmt.Sprintf("plain=%v", config.Plain), func(t *testing.T) {
			h := newHost(t, config)
			n, gone := cnitest.NewNetns(t), cnitest.NewNetns(t)
			h.must(h.good("ADD", "c1", n))
			h.must(h.good("ADD", "c2", gone))
			h.daemon.Stop()
			h.daemon.Start()
			if running(t, n) {
				t.Fatal("the interface has a carrier without the queues")
			}
			if code, out := h.reattach(); code != 0 || strings.Count(out, "reattached") != 2 {
				t.Errorf("exit code %d, %s", code, out)
			}
			wantPings(t, n, "eth0")

			h.daemon.Stop()
			h.daemon.Start()
			gone.Remove()
			code, out := h.reattach()
			if code != 1 || strings.Count(out, "reattached") != 1 || !strings.Contains(out, "default/c2 c2/eth0: failed: "+gone.Path) {
				t.Errorf("exit code %d, %s", code, out)
			}
			wantPings(t, n, "eth0")

			h.must(h.good("DEL", "c2", gone))
			if code, out := h.reattach(); code != 0 || out != "" { // nothing to do
				t.Errorf("exit code %d, %s", code, out)
			}
			wantPings(t, n, "eth0")
			h.daemon.Stop()
			if code, out := h.reattach(); code != 1 {
				t.Errorf("without a daemon: exit code %d, %s", code, out)
			}
		})
	}
}

func running(t *testing.T, n *cnitest.Netns) (up bool) {
	t.Helper()
	err := n.Do(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName("eth0")
		if err == nil {
			up = link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// reattach runs the command and returns its exit code and output.
func (h *host) reattach() (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), invokeTimeout)
	defer cancel()
	cmd := h.command(ctx, invocation{})
	cmd.Args = append(cmd.Args, "reattach", "--socket", h.daemon.Socket)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}
