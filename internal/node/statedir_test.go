package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStateDirectoryIsOneDaemons(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, err := openStateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, err %v; want 0700", info.Mode(), err)
	}
	if _, err := openStateDir(path); err == nil || !strings.Contains(err.Error(), "--state-dir "+path) || !strings.Contains(err.Error(), "another vswitch") {
		t.Errorf("second: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := openStateDir(path)
	if err != nil {
		t.Fatalf("after the first closed: %v", err)
	}
	again.Close()
}

func TestStateDirectoryThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := openStateDir(filepath.Join(file, "state"))
	if err == nil || !strings.Contains(err.Error(), "--state-dir") || !strings.Contains(err.Error(), "want a directory") {
		t.Errorf("got %v", err)
	}
}

func TestInstanceIsMadeOnce(t *testing.T) {
	d, err := openStateDir(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	first, err := d.instance()
	if err != nil || len(first) != 32 {
		t.Fatalf("instance %q, err %v", first, err)
	}
	if second, err := d.instance(); err != nil || second != first {
		t.Errorf("second %q, err %v; want %q", second, err, first)
	}
	if a, b := vtepMAC(first), vtepMAC("another"); a == b || a.IsMulticast() || a.IsZero() {
		t.Errorf("VTEP MACs %v and %v", a, b)
	}
	if err := os.WriteFile(d.file(instanceFile), []byte("cut o"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third, err := d.instance(); err != nil || len(third) != 32 || third == first {
		t.Errorf("after damage: %q, %v; want a new one", third, err)
	}
}
