package statefile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writerEnv makes this test's program a writer of the file it names.
const (
	writerEnv = "STATEFILE_TEST_WRITER"
	// volatileEnv says that it is a Volatile one.
	volatileEnv = "STATEFILE_TEST_VOLATILE"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		fmt.Fprintln(os.Stderr, write(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// numbered is a value of any length of which each part tells whether it belongs.
type numbered struct {
	N   int
	Pad string
}

func number(n int) numbered {
	return numbered{n, strings.Repeat(strconv.Itoa(n)+" ", n*7919%20000)}
}

// write replaces the file by the next value for ever, and says each that is written.
func write(path string) error {
	f := File{Path: path, Kind: "test", Version: 1, Volatile: os.Getenv(volatileEnv) != ""}
	var v numbered
	if err := f.Read(&v); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for n := v.N + 1; ; n++ {
		if err := f.Write(number(n)); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// A writer is killed at any moment, again and again: what is read then is what was
// written last, or what was about to be, whole.
func TestAKilledWriterLeavesTheOldValueOrTheNew(t *testing.T) {
	t.Run("synced", func(t *testing.T) { killWriters(t) })
	t.Run("volatile", func(t *testing.T) { killWriters(t, volatileEnv+"=1") })
}

func killWriters(t *testing.T, env ...string) {
	path := filepath.Join(t.TempDir(), "file")
	said, between := 0, 0
	for round := range 60 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(append(os.Environ(), env...), writerEnv+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if said, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
			// Somewhere within the writes that follow, whatever the disk's speed.
			if rand.N(3) == 0 {
				time.Sleep(rand.N(3 * time.Millisecond))
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		for lines.Scan() { // what it said meanwhile
			said, _ = strconv.Atoi(lines.Text())
		}
		_ = cmd.Wait()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			t.Fatalf("round %d: the writer ended by itself: %s", round, stderr.String())
		}
		var got numbered
		if err := (File{Path: path, Kind: "test", Version: 1}).Read(&got); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if got != number(got.N) {
			t.Fatalf("round %d: value %d is not whole", round, got.N)
		}
		if got.N != said && got.N != said+1 {
			t.Fatalf("round %d: value %d, but %d was said to be written", round, got.N, said)
		}
		if _, err := os.Lstat(path + ".new"); err == nil {
			between++
		}
	}
	t.Logf("%d values; %d of 60 deaths left a file half written aside", said, between)
	if between == 0 {
		t.Error("no death came within a write: the test shows nothing")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) > 2 {
		t.Errorf("%v is left (%v)", entries, err)
	}
}

// Whatever a death left of the file that is written aside, the next write and read
// don't care.
func TestWhatIsLeftAsideDoesNotMatter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f := File{Path: path, Kind: "test", Version: 1}
	if err := f.Write(number(2)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for length := 0; length <= len(whole); length += 1 + len(whole)/50 {
		if err := f.Write(number(1)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", whole[:length], 0o600); err != nil {
			t.Fatal(err)
		}
		var v numbered
		if err := f.Read(&v); err != nil || v != number(1) {
			t.Fatalf("with %d bytes aside: value %d, %v", length, v.N, err)
		}
		if err := f.Write(number(3)); err != nil {
			t.Fatal(err)
		}
		if err := f.Read(&v); err != nil || v != number(3) {
			t.Fatalf("written over %d bytes aside: value %d, %v", length, v.N, err)
		}
	}
}
