package fdstore

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

func TestDescriptorsOutliveTheOneWhoPutThem(t *testing.T) {
	before := openFDs(t)
	var m Memory
	r, w := pipe(t)
	if err := m.Put("pod-a", []int{r, w}); err != nil {
		t.Fatal(err)
	}
	closeAll([]int{r, w})

	first, err := m.Get("pod-a")
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.Get("pod-a") // a Get does not take
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(first[1], []byte("x")); err != nil {
		t.Errorf("second descriptor is not the pipe's write end: %v", err)
	}
	buf := make([]byte, 1)
	if n, err := unix.Read(second[0], buf); n != 1 || err != nil {
		t.Errorf("first descriptor is not the pipe's read end: %d, %v", n, err)
	}
	for _, fd := range first {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is not close-on-exec: %#x, %v", fd, flags, err)
		}
	}
	closeAll(first)
	closeAll(second)

	if err := m.Remove("pod-a"); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove("pod-a"); err != nil {
		t.Errorf("second Remove: %v", err)
	}
	if _, err := m.Get("pod-a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Remove: %v, want ErrNotFound", err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestPutReplacesAndFailsWhole(t *testing.T) {
	before := openFDs(t)
	var m Memory
	r, w := pipe(t)
	if err := m.Put("a", []int{r}); err != nil {
		t.Fatal(err)
	}
	if err := m.Put("a", []int{r, w}); err != nil {
		t.Fatal(err)
	}
	if err := m.Put("a", []int{r, w, -1}); !errors.Is(err, unix.EBADF) {
		t.Errorf("Put of a closed descriptor: %v, want EBADF", err)
	}
	fds, err := m.Get("a")
	if err != nil || len(fds) != 2 {
		t.Errorf("Get: %d descriptors, %v; want the 2 of the last Put that worked", len(fds), err)
	}
	closeAll(fds)
	if err := m.Put("b", nil); err != nil {
		t.Fatal(err)
	}
	if names, _ := m.Names(); !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("Names: %q", names)
	}
	m.Close()
	closeAll([]int{r, w})
	if names, _ := m.Names(); len(names) != 0 {
		t.Errorf("Names after Close: %q", names)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "tap/0123abcd/eth0", strings.Repeat("x", MaxNameBytes)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "a:b", "a b", "a\n", "\x7f", "ü", strings.Repeat("x", MaxNameBytes+1)} {
		if err := CheckName(bad); err == nil {
			t.Errorf("name %q was accepted", bad)
		}
		if err := new(Memory).Put(bad, nil); err == nil {
			t.Errorf("Put accepted name %q", bad)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	before := openFDs(t)
	var m Memory
	r, w := pipe(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if err := m.Put("a", []int{r, w}); err != nil {
					t.Error(err)
				}
				fds, err := m.Get("a")
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
				closeAll(fds)
				m.Remove("a")
			}
		})
	}
	wg.Wait()
	m.Close()
	closeAll([]int{r, w})
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
