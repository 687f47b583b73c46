//go:build !race

// With the race detector memory lies on the heap of its process, where nobody finds it
// again.

package affinity

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/lasting"
	"vswitch/internal/lasting/lastingtest"
)

// handOver closes a memory and opens it as the next process does.
func handOver(t *testing.T, m *Memory, now uint32) (*Memory, Report) {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next, report, err := Open(fd, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	return next, report
}

func TestClientsOutliveTheProcess(t *testing.T) {
	m, all := newMemory(t), choice(64)
	const n = 5000
	had := choose(m, 1, n, all, 5)
	for range 3 {
		var report Report
		if m, report = handOver(t, m, 6); report != (Report{Kept: n}) {
			t.Fatalf("%+v, want %d clients", report, n)
		}
		if x := kept(m, 1, had, all, 6); x != n {
			t.Fatalf("%d of %d clients keep their endpoints", x, n)
		}
	}
	// Time that lies ahead, as after the clock was set back, is now.
	m, _ = handOver(t, m, 2)
	if x := kept(m, 1, had, all, 2+timeout+1); x != 0 {
		t.Errorf("%d clients never expire", x)
	}
}

func TestAMemoryInAFile(t *testing.T) {
	path, all := filepath.Join(lastingtest.Tmpfs(t), "affinity"), choice(64)
	open := func() int { return lastingtest.File(t, path, 0o600) }
	m, err := Create(open())
	if err != nil {
		t.Fatal(err)
	}
	had := choose(m, 1, 10, all, 1)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, report, err := Open(open(), 2)
	if err != nil || report.Kept != 10 || kept(m, 1, had, all, 2) != 10 {
		t.Fatalf("%+v, %v; want 10 clients", report, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || int(st.Blocks)*512 > memoryBytes/4 && st.Blksize == 4096 {
		t.Errorf("ten clients take %d bytes of the tmpfs, of %d; %v", st.Blocks*512, st.Size, err)
	}
}

// Every byte of a record but its time is covered, and a record is good in its own set
// only.
func TestDamagedRecordsAreNobodys(t *testing.T) {
	for at := range recordBytes + 1 {
		m, all := newMemory(t), choice(64)
		choose(m, 1, 2, all, 1)
		var first, other *record
		for i := range m.sets {
			for j := range m.sets[i] {
				if r := &m.sets[i][j]; r.check != 0 && first == nil {
					first, other = r, &m.sets[(i+1)%sets][15]
				}
			}
		}
		want := Report{Kept: 1, Discarded: 1}
		switch {
		case at == recordBytes: // copied to where its client does not belong
			*other, want.Kept = *first, 2
		case at >= 48 && at < 52 || at == 54 || at == 55: // its time; nothing
			continue
		default:
			i := int(uintptr(unsafe.Pointer(first))-uintptr(unsafe.Pointer(unsafe.SliceData(m.memory.Bytes)))) + at
			m.memory.Bytes[i] ^= 4
		}
		if _, report := handOver(t, m, 1); report != want {
			t.Errorf("byte %d: %+v, want %+v", at, report, want)
		}
	}
}

func TestOpenRefusesWhatIsNoMemory(t *testing.T) {
	for name, damage := range map[string]func([]byte){
		"zeros":           func(b []byte) { clear(b[:headerBytes]) },
		"another version": func(b []byte) { b[8]++ },
	} {
		m := newMemory(t)
		damage(m.memory.Bytes)
		fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(fd, 1); err == nil || !strings.Contains(err.Error(), "version") {
			t.Errorf("%s: %v", name, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Errorf("%s: Open has taken the descriptor: %v", name, err)
		}
	}
}

// A process that remembers clients at full speed is killed at any moment, many times. It
// is this test binary with writerEnv set: the memory is its descriptor 3.
const writerEnv = "VSWITCH_AFFINITY_TEST_WRITER"

func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, writeUntilKilled())
	os.Exit(1)
}

// own is the endpoint of the client of a number, so that a record can be judged.
func own(i uint32) endpoints { return choice(256)[i%256 : i%256+1] }

func writeUntilKilled() error {
	m, _, err := Open(3, 1)
	if err != nil {
		return err
	}
	fmt.Println("begun")
	for {
		i := rand.Uint32N(1 << 19)
		m.Choose(client(1, int(i)), own(i), 1, timeout)
	}
}

func TestAMemoryOutlivesKilledProcesses(t *testing.T) {
	const kills = 30
	m := newMemory(t)
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	shared := os.NewFile(uintptr(fd), "memory")
	defer shared.Close()
	clients, torn := 0, 0
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"=1")
		cmd.ExtraFiles = []*os.File{shared}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(rand.N(10*time.Millisecond), func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the writer ended by itself: %v", cmd.ProcessState)
		}
		kept, discarded := judge(t, shared)
		clients, torn = clients+kept, torn+discarded
	}
	t.Logf("%d clients, %d torn records in %d memories", clients, torn, kills)
	if clients < kills*1000 || torn > kills {
		t.Errorf("%d clients in %d memories, %d torn records, want at most the one that was being written", clients, kills, torn)
	}
}

// judge opens the memory of a process that was killed: each client has its own endpoint.
func judge(t *testing.T, shared *os.File) (kept, discarded int) {
	t.Helper()
	fd, err := unix.FcntlInt(shared.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	m, report, err := Open(fd, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i := range m.sets {
		for j := range m.sets[i] {
			r := &m.sets[i][j]
			if r.check == 0 {
				continue
			}
			var addr [8]byte
			binary.NativeEndian.PutUint64(addr[:], r.key.addr[1])
			if want := own(binary.BigEndian.Uint32(addr[4:]) - 0x0a_00_00_00)[0]; r.endpoint() != want {
				t.Errorf("a client has %+v, want %+v", r.endpoint(), want)
			}
		}
	}
	return report.Kept, report.Discarded
}

func TestAMemoryHasOneProcess(t *testing.T) {
	m := newMemory(t)
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	shared := os.NewFile(uintptr(fd), "memory")
	defer shared.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"=1")
	cmd.ExtraFiles = []*os.File{shared}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), lasting.ErrInUse.Error()) {
		t.Fatalf("the second process: %v, %s", err, out)
	}
	if _, _, err := Open(-1, 1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
