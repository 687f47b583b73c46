package node

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
)

// taken are the files of a node that somebody may delete, and what is in them.
func taken(t *testing.T, d *daemon) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range []string{lockFile, instanceFile, claimFile, leasesFile, snapshotFile, journalFile} {
		path := filepath.Join(d.cfg.StateDir, name)
		var err error
		if files[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	files[d.cfg.SocketPath], files[api.FDSocket(d.cfg.SocketPath)] = nil, nil
	return files
}

// A node whose files are deleted, one by one or with their directories, has them
// again a moment later, and says so.
func TestDeletedFilesComeBack(t *testing.T) {
	cfg := newConfig(t)
	d := start(t, cfg)
	d.waitReady(t)
	c := d.client(t)
	if _, err := c.AddPod(t.Context(), addRequest("c1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last good state is saved", func() bool {
		_, err := os.Stat(filepath.Join(cfg.StateDir, snapshotFile))
		return err == nil
	})
	eventually(t, "the leases are written", func() bool {
		b, _ := os.ReadFile(filepath.Join(cfg.StateDir, leasesFile))
		return bytes.Contains(b, []byte("c1"))
	})
	stays := c // its connection is not to be touched
	remove := func(paths ...string) error {
		var errs []error
		for _, p := range paths {
			errs = append(errs, os.Remove(p))
		}
		return errors.Join(errs...)
	}
	for round, takeAway := range []func() error{
		func() error { // the others are written since the first look: seen for the first time in this round
			return remove(filepath.Join(cfg.StateDir, lockFile), filepath.Join(cfg.StateDir, instanceFile),
				filepath.Join(cfg.StateDir, claimFile), cfg.SocketPath, api.FDSocket(cfg.SocketPath))
		},
		func() error {
			return errors.Join(os.RemoveAll(cfg.StateDir), os.RemoveAll(filepath.Dir(cfg.SocketPath)))
		},
	} {
		files := taken(t, d)
		store := filepath.Join(cfg.StateDir, storeDir)
		aside := filepath.Join(filepath.Dir(cfg.StateDir), "store-aside")
		if err := os.Rename(store, aside); err != nil { // which nobody can mend
			t.Fatal(err)
		}
		if err := takeAway(); err != nil {
			t.Fatal(err)
		}
		for path, was := range files {
			eventually(t, path+" is back", func() bool { _, err := os.Lstat(path); return err == nil })
			now, err := os.ReadFile(path)
			if name := filepath.Base(path); name == snapshotFile || name == journalFile { // objects go on changing
				now, was = now[bytes.IndexByte(now, '{'):bytes.IndexByte(now, ',')], was[bytes.IndexByte(was, '{'):bytes.IndexByte(was, ',')]
			}
			if filepath.Dir(path) == cfg.StateDir && (err != nil || !bytes.Equal(now, was)) {
				t.Errorf("round %d: %s holds %q (%v), before %q", round, path, now, err, was)
			}
		}
		if err := os.Rename(aside, store); err != nil {
			t.Fatal(err)
		}
		if _, err := openStateDir(cfg.StateDir); err == nil || !strings.Contains(err.Error(), "another vswitch") {
			t.Errorf("round %d: the state directory is not locked: %v", round, err)
		}
		conn, err := net.Dial("unixpacket", api.FDSocket(cfg.SocketPath))
		if err != nil {
			t.Errorf("round %d: descriptor socket: %v", round, err)
		} else {
			conn.Close()
		}
		for name, c := range map[string]*apiv1.Client{"new": d.client(t), "from before": stays} {
			if _, err := c.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
				t.Errorf("round %d: API by a connection %s: %v", round, name, err)
			}
		}
	}
	mended := map[string]float64{}
	eventually(t, "nothing is wrong any more", func() bool {
		for _, r := range rows(t, stays, "upkeep") {
			mended[r["object"].(string)], _ = r["mended"].(float64)
			if r["problem"] != nil {
				return false
			}
		}
		return true
	})
	for object, want := range map[string]float64{
		"lock of the state directory": 2, "API socket": 2, "descriptor socket": 2, "instance in the state directory": 2,
		"claim.json in the state directory": 2, "leases.json in the state directory": 1, "objects.json in the state directory": 1,
		"store in the state directory": 0,
	} {
		if got, ok := mended[object]; !ok || got < want {
			t.Errorf("%s: mended %v times, want %v at least", object, got, want)
		}
	}
	d.end(t)
	for path := range taken(t, d) {
		if _, err := os.Lstat(path); filepath.Dir(path) != cfg.StateDir && err == nil {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// Two daemons on one state directory would lease one address twice.
func TestALockTakenByAnotherIsNotTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, err := openStateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.locked(); err != nil {
		t.Errorf("locked: %v", err)
	}
	if err := os.Remove(filepath.Join(path, lockFile)); err != nil {
		t.Fatal(err)
	}
	other, err := openStateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.locked(); err == nil {
		t.Error("another's lock is taken for one's own")
	}
	if err := d.relock(); err == nil || !strings.Contains(err.Error(), "another vswitch") {
		t.Errorf("relock: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.relock(); err != nil {
		t.Error(err)
	}
	if err := d.locked(); err != nil {
		t.Errorf("locked again: %v", err)
	}
}

func TestSourceTowards(t *testing.T) {
	if got, want := sourceTowards(netip.MustParseAddr("127.1.2.3")), netip.MustParseAddr("127.0.0.1"); got != want {
		t.Errorf("towards loopback: %v, want %v", got, want)
	}
	if got := sourceTowards(netip.MustParseAddr("255.255.255.254")); got == netip.MustParseAddr("127.0.0.1") {
		t.Errorf("towards nobody: %v", got)
	}
}

func TestMembersOfPrefixesAreWithin(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.244.0.0/16": "10.244.0.1", "2001:db8::/64": "2001:db8::1", "198.51.100.7/32": "198.51.100.7", "2001:db8::7/128": "2001:db8::7", "198.51.100.6/31": "198.51.100.7",
	} {
		if got := memberOf(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("of %s: %v, want %s", prefix, got, want)
		}
	}
}
