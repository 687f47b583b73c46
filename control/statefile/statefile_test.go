package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
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
	for _, other := range []File{{Path: f.Path, Kind: "other", Version: 3}, {Path: f.Path, Kind: "test", Version: 4}} {
		if err := other.Write(value{}); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if err := f.Read(&value{}); !errors.As(err, &damaged) || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: %v, want a *DamagedError that says what it wants", other, err)
		}
	}
}

// What is written in pieces reads as if it had been written whole; an error in the
// middle leaves the old value.
func TestWriteFromPieces(t *testing.T) {
	f := testFile(t)
	whole := value{Name: strings.Repeat("long <&> \u2028 ", 20_000)}
	if err := f.Write(whole); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	pieces := func(fail error) func(io.Writer) error {
		return func(w io.Writer) error {
			for i, b := range js {
				if i == len(js)/2 && fail != nil {
					return fail
				}
				if _, err := w.Write([]byte{b}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if _, err := f.WriteFrom(pieces(nil)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("in pieces %d bytes, whole %d, or they differ (%v)", len(got), len(want), err)
	}
	cause := errors.New("no more")
	if _, err := f.WriteFrom(pieces(cause)); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	var got value
	if err := f.Read(&got); err != nil || got.Name != whole.Name {
		t.Errorf("after a write that failed: %v, want the old value", err)
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
