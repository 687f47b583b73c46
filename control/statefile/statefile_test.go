package statefile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type value struct {
	Name string
	N    []int
}

func testFile(t *testing.T) File {
	return File{Path: filepath.Join(t.TempDir(), "state.json"), Kind: "test", Version: 3}
}

func TestWriteThenRead(t *testing.T) {
	f := testFile(t)
	var got value
	if err := f.Read(&got); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read of no file: %v, want fs.ErrNotExist", err)
	}
	// Characters that encoding/json escapes must not upset the checksum.
	for _, want := range []value{{"<a&b>\u2028", []int{1}}, {"b", nil}} {
		if err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		got = value{}
		if err := f.Read(&got); err != nil {
			t.Fatal(err)
		}
		if got.Name != want.Name || len(got.N) != len(want.N) {
			t.Fatalf("read %+v, want %+v", got, want)
		}
	}
	info, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode().Perm())
	}
}

// Every truncation and every flipped bit is noticed, and the file kept aside.
func TestDamageIsNoticed(t *testing.T) {
	f := testFile(t)
	if err := f.Write(value{"web", []int{1, 2}}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimSpace(good))
	check := func(what string, i int, bad []byte) {
		t.Helper()
		if err := os.WriteFile(f.Path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		var got value
		err := f.Read(&got)
		var damaged *DamagedError
		if !errors.As(err, &damaged) {
			t.Fatalf("%s %d: %v, want a *DamagedError", what, i, err)
		}
		kept, err := os.ReadFile(damaged.Kept)
		if err != nil || !bytes.Equal(kept, bad) {
			t.Fatalf("%s %d: the damaged file was not kept: %v", what, i, err)
		}
		if err := f.Read(&got); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s %d: second read: %v, want fs.ErrNotExist", what, i, err)
		}
	}
	for i := range end {
		check("truncated to", i, good[:i])
		bad := bytes.Clone(good)
		bad[i] ^= 0x01
		check("bit flipped at", i, bad)
	}
}

func TestFileOfAnotherKindOrVersionIsDamage(t *testing.T) {
	f := testFile(t)
	for _, other := range []File{{f.Path, "other", 3}, {f.Path, "test", 4}} {
		if err := other.Write(value{}); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if err := f.Read(&value{}); !errors.As(err, &damaged) || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: %v, want a *DamagedError that says what it wants", other, err)
		}
	}
}

// A write that can't succeed leaves the old value.
func TestFailedWriteKeepsTheOldValue(t *testing.T) {
	f := testFile(t)
	if err := f.Write(value{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.Path+".new", 0o700); err != nil { // the file aside can't be made
		t.Fatal(err)
	}
	if err := f.Write(value{Name: "new"}); err == nil {
		t.Fatal("write succeeded, want an error")
	}
	var got value
	if err := f.Read(&got); err != nil || got.Name != "old" {
		t.Fatalf("read %+v, %v; want the old value", got, err)
	}
}
