package e2e

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
)

// Case 44: files and sockets of a running node are its user's alone, and no pod reaches
// the store, whoever has which owns every node, by any address of any node.
func TestADaemonIsItsUsersAlone(t *testing.T) {
	c := newCluster(t, "--host-loopback", "10.0.2.2,fd00:0:0:ffff::2")
	a := c.nodes[0]
	hostCommand(t, a, "attach")
	attached := hostAddrs(t, a)

	files := 0
	private := func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // written aside a moment ago
		}
		if err != nil {
			return err
		}
		files++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v: others may use it", path, info.Mode())
		}
		return nil
	}
	for _, n := range c.nodes {
		if err := filepath.WalkDir(n.StateDir(), private); err != nil {
			t.Error(err)
		}
		for _, socket := range []string{n.Socket(), n.Socket() + ".fds"} {
			var st unix.Stat_t
			if err := unix.Lstat(socket, &st); err != nil || st.Mode&0o7777 != 0o600 || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
				t.Errorf("%s: mode %o, %v; want a socket of mode 600", socket, st.Mode, err)
			}
		}
	}
	const least = 12 // of two nodes: claim, instance, lock, leases, attachments, objects
	if files < least {
		t.Errorf("only %d files were looked at, want %d", files, least)
	}

	const storePort = 2379
	store := netip.AddrPortFrom(a.Underlay4, storePort)
	if conn, err := dial(c.nodes[1].Namespace, "tcp", netip.AddrPort{}, store); err != nil {
		t.Errorf("a node does not reach the store: %v", err)
	} else {
		conn.Close()
	}
	for what, at := range map[string]netip.Addr{
		"the node": a.Underlay4, "the node by IPv6": a.Underlay6, "the node's loopback": netip.MustParseAddr("10.0.2.2"),
		"the attached host": attached[4], "the attached host by IPv6": attached[6],
	} {
		for pod, from := range map[string]*lab.Pod{"its pod": c.a1, "the other node's pod": c.b1} {
			conn, err := dial(from.Namespace, "tcp", netip.AddrPort{}, netip.AddrPortFrom(at, storePort))
			if err == nil {
				conn.Close()
				t.Errorf("%s reaches the store at %s", pod, what)
			}
		}
	}
}
