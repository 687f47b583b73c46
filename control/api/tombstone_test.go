package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func key(network, container, ifname string) AttachmentKey {
	return AttachmentKey{Network: network, ContainerID: container, Ifname: ifname}
}

// listed is the keys of Tombstones as text.
func listed(t *testing.T, socket string) map[string]bool {
	t.Helper()
	keys, err := Tombstones(socket)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for _, k := range keys {
		m[k.Network+"/"+k.ContainerID+"/"+k.Ifname] = true
	}
	if len(m) != len(keys) {
		t.Errorf("duplicates in %v", keys)
	}
	return m
}

func TestTombstones(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "vs.sock")
	if got := listed(t, socket); len(got) != 0 {
		t.Errorf("tombstones before there was one: %v", got)
	}
	long := strings.Repeat("c", 1000) // longer than a file name may be
	for range 2 {
		for _, k := range []AttachmentKey{key("n", long, "eth0"), key("n", "c", "eth0"), key("n", "c", "eth1")} {
			if err := WriteTombstone(socket, k); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := listed(t, socket); len(got) != 3 || !got["n/"+long+"/eth0"] || !got["n/c/eth0"] || !got["n/c/eth1"] {
		t.Errorf("got %v", got)
	}
	if err := RemoveTombstone(socket, key("n", "c", "eth0")); err != nil {
		t.Error(err)
	}
	if err := RemoveTombstone(socket, key("n", "c", "eth0")); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if HasTombstone(socket, key("n", "c", "eth0")) || !HasTombstone(socket, key("n", "c", "eth1")) {
		t.Error("the wrong one is gone")
	}
	info, err := os.Stat(TombstoneDir(socket))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory %v, %v, want mode 0700", info, err)
	}
}

func TestATombstoneWorksWhereTheDaemonTookItsDirectoryAlong(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "vswitch", "vs.sock")
	if err := WriteTombstone(socket, key("n", "c", "eth0")); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, socket); !got["n/c/eth0"] {
		t.Errorf("got %v", got)
	}
}

func TestABrokenTombstoneDoesNotHideOthers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "vs.sock")
	if err := WriteTombstone(socket, key("n", "c", "eth0")); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"0broken": "{", "zempty": "{}", ".new-1": "half"} {
		if err := os.WriteFile(filepath.Join(TombstoneDir(socket), name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := Tombstones(socket)
	if len(keys) != 1 || keys[0].ContainerID != "c" {
		t.Errorf("got %v", keys)
	}
	if err == nil || !strings.Contains(err.Error(), "0broken") || !strings.Contains(err.Error(), "zempty") || strings.Contains(err.Error(), ".new") {
		t.Errorf("got %v, want it to name the two", err)
	}
}
