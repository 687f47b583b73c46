package statefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func journal(t *testing.T) Journal {
	return Journal{Path: filepath.Join(t.TempDir(), "journal"), Kind: "test-journal", Version: 3}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begun is a journal of the value "sum" with three records.
func begun(t *testing.T) (j Journal, text []byte) {
	t.Helper()
	j = journal(t)
	must(t, j.Begin("sum"))
	for _, record := range []string{`{"a":1}`, `{"b": 2}`, `{"c":3}`} {
		before, err := os.Stat(j.Path)
		must(t, err)
		n, err := j.Append([]byte(record))
		must(t, err)
		if after, err := os.Stat(j.Path); err != nil || after.Size() != before.Size()+int64(n) {
			t.Errorf("said that it wrote %d bytes: %d became %d", n, before.Size(), after.Size())
		}
	}
	text, err := os.ReadFile(j.Path)
	must(t, err)
	return j, text
}

func wantRecords(t *testing.T, j Journal, want ...string) {
	t.Helper()
	got, err := j.Read("sum")
	must(t, err)
	if fmt.Sprintf("%s", got) != fmt.Sprint(want) {
		t.Errorf("read %s, want %s", got, want)
	}
}

func TestJournalIsReadBack(t *testing.T) {
	j, _ := begun(t)
	wantRecords(t, j, `{"a":1}`, `{"b": 2}`, `{"c":3}`)
	if got, err := j.Read("another"); err != nil || got != nil {
		t.Errorf("of another value: %s, %v; want none", got, err)
	}
	must(t, j.Begin("sum"))
	wantRecords(t, j)
	must(t, os.Remove(j.Path))
	wantRecords(t, j)
	if _, err := j.Append([]byte("{}")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("append to a journal that somebody deleted: %v", err)
	}
}

// Wherever a machine stopped while the last record was written, those before are there.
func TestJournalCutShort(t *testing.T) {
	j, text := begun(t)
	whole := len(text)
	last := whole - len(appendLine(nil, []byte(`{"c":3}`)))
	for n := last; n < whole; n++ {
		must(t, os.WriteFile(j.Path, text[:n], 0o600))
		wantRecords(t, j, `{"a":1}`, `{"b": 2}`)
	}
	for n := last; n < whole; n++ { // its size reached the disk, not all of its content
		zeros := append(append([]byte(nil), text[:n]...), make([]byte, whole-n)...)
		must(t, os.WriteFile(j.Path, zeros, 0o600))
		wantRecords(t, j, `{"a":1}`, `{"b": 2}`)
	}
}

// A flipped bit is damage, but for the last line's end.
func TestJournalWithAFlippedBit(t *testing.T) {
	j, text := begun(t)
	for i := range len(text) - 1 {
		flipped := append([]byte(nil), text...)
		flipped[i] ^= 0x10
		must(t, os.WriteFile(j.Path, flipped, 0o600))
		got, err := j.Read("sum")
		var damaged *DamagedError
		if !errors.As(err, &damaged) || got != nil {
			t.Fatalf("byte %d: read %s, %v; want a *DamagedError", i, got, err)
		}
		if _, err := os.Stat(j.Path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("byte %d: the journal is left in place", i)
		}
		must(t, os.Remove(damaged.Kept))
	}
}

func TestJournalOfAnotherKind(t *testing.T) {
	j, text := begun(t)
	for _, other := range []Journal{{j.Path, "other", j.Version}, {j.Path, j.Kind, j.Version + 1}} {
		must(t, os.WriteFile(j.Path, text, 0o600))
		var damaged *DamagedError
		if _, err := other.Read("sum"); !errors.As(err, &damaged) {
			t.Errorf("read as %q version %d: %v", other.Kind, other.Version, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	j := Journal{Kind: "test-journal", Version: 3}
	head := appendLine(nil, []byte(`{"kind":"test-journal","version":3,"of":"sum"}`))
	f.Add(head)
	f.Add(appendLine(head, []byte("{}")))
	f.Add([]byte("00000000 \n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		records, err := j.decode(text, "sum")
		if err != nil && records != nil {
			t.Errorf("both records %q and %v", records, err)
		}
	})
}
