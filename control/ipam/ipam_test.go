package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func open(t testing.TB, path, boot string, cidrs ...string) *Pool {
	t.Helper()
	p, err := Open(Config{Path: path, BootID: boot, CIDRs: prefixes(cidrs...)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func lease(t testing.TB, p *Pool, holder string) string {
	t.Helper()
	addrs, err := p.Lease(holder)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(addrs)
}

func flush(t testing.TB, p *Pool) {
	t.Helper()
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestBothFamiliesShareAHostNumber(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "ipam.json"), "boot", "192.0.2.0/24", "2001:db8:0:1::/64")
	if got, want := lease(t, p, "a"), "[192.0.2.2 2001:db8:0:1::2]"; got != want {
		t.Errorf("first lease %s, want %s: network and router addresses come before", got, want)
	}
	if got, want := lease(t, p, "b"), "[192.0.2.3 2001:db8:0:1::3]"; got != want {
		t.Errorf("second lease %s, want %s", got, want)
	}
	if got, want := lease(t, p, "a"), "[192.0.2.2 2001:db8:0:1::2]"; got != want {
		t.Errorf("lease of the same holder %s, want %s again", got, want)
	}
}

func TestExhaustionIsCleanAndEndsWithARelease(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "ipam.json"), "boot", "192.0.2.0/29")
	var got []string
	for i := range 5 { // 8 less network, router, broadcast
		got = append(got, lease(t, p, fmt.Sprint(i)))
	}
	want := []string{"[192.0.2.2]", "[192.0.2.3]", "[192.0.2.4]", "[192.0.2.5]", "[192.0.2.6]"}
	if !slices.Equal(got, want) {
		t.Fatalf("leases %v, want %v", got, want)
	}
	if _, err := p.Lease("more"); !errors.Is(err, ErrExhausted) {
		t.Fatalf("lease from a full pool: %v, want ErrExhausted", err)
	}
	if p.Free() != 0 {
		t.Errorf("free %d, want 0", p.Free())
	}
	p.Release("3")
	if got := lease(t, p, "more"); got != "[192.0.2.5]" {
		t.Errorf("lease %s, want the one released", got)
	}
}

func TestAReleasedAddressRestsUntilTheOthersHadTheirTurn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "boot", "192.0.2.0/29")
	var got []string
	for i := range 6 {
		got = append(got, lease(t, p, "pod"))
		p.Release("pod")
		if i == 2 { // a restart does not forget whose turn it is, nor does a boot
			flush(t, p)
			p = open(t, path, "another boot", "192.0.2.0/29")
		}
	}
	want := []string{"[192.0.2.2]", "[192.0.2.3]", "[192.0.2.4]", "[192.0.2.5]", "[192.0.2.6]", "[192.0.2.2]"}
	if !slices.Equal(got, want) {
		t.Errorf("leases %v, want %v", got, want)
	}
}

func TestLeasesLastForTheBoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "boot 1", "192.0.2.0/24")
	was := lease(t, p, "a")
	flush(t, p)

	p = open(t, path, "boot 1", "192.0.2.0/24")
	if got := lease(t, p, "a"); got != was {
		t.Errorf("after a restart %s, want %s", got, was)
	}
	p = open(t, path, "boot 2", "192.0.2.0/24")
	if h := p.Holders(); len(h) != 0 {
		t.Errorf("after a boot %v still hold leases", h)
	}
}

// A node that got other CIDRs keeps what its running pods have, apart.
func TestLeasesOfFormerCIDRsStayUntilReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "boot", "192.0.2.0/24")
	lease(t, p, "old")
	flush(t, p)

	for range 2 { // and over one more restart
		p = open(t, path, "boot", "198.51.100.0/24")
		if got := lease(t, p, "old"); got != "[192.0.2.2]" {
			t.Errorf("lease of a running pod %s, want [192.0.2.2]", got)
		}
		flush(t, p)
	}
	p = open(t, path, "boot", "198.51.100.0/24")
	if got := lease(t, p, "new"); got != "[198.51.100.2]" {
		t.Errorf("new lease %s, want [198.51.100.2]", got)
	}
	p.Release("old")
	if h := p.Holders(); !slices.Equal(h, []string{"new"}) {
		t.Errorf("holders %v, want [new]", h)
	}
}

// A pod with only half of a lease still keeps the other half from being leased.
func TestHalfALeaseBlocksItsNumber(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "ipam.json"), "boot", "192.0.2.0/24", "2001:db8::/64")
	if err := p.Hold("v6 only", []netip.Addr{netip.MustParseAddr("2001:db8::2")}); err != nil {
		t.Fatal(err)
	}
	if got := lease(t, p, "a"); got != "[192.0.2.3 2001:db8::3]" {
		t.Errorf("lease %s, want number 3: 2 is held in part", got)
	}
}

func TestDamagedFileIsSetAsideAndRunningPodsCanBeHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "boot", "192.0.2.0/24")
	lease(t, p, "a")
	flush(t, p)
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	p = open(t, path, "boot", "192.0.2.0/24")
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Errorf("the damaged file was not kept: %v", err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	if err := p.Hold("a", addrs); err != nil {
		t.Fatal(err)
	}
	if err := p.Hold("thief", addrs); err == nil {
		t.Error("two holders of one address, want an error")
	}
	if got := lease(t, p, "b"); got != "[192.0.2.3]" {
		t.Errorf("lease %s, want [192.0.2.3]: .2 is held", got)
	}
}

func TestWhatCannotBeWrittenIsWrittenLater(t *testing.T) {
	dir := t.TempDir()
	path, obstacle := filepath.Join(dir, "ipam.json"), filepath.Join(dir, "ipam.json.new")
	p := open(t, path, "boot", "192.0.2.0/24")
	lease(t, p, "a")
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(); err == nil {
		t.Fatal("written without a file")
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	flush(t, p)
	if h := open(t, path, "boot", "192.0.2.0/24").Holders(); !slices.Equal(h, []string{"a"}) {
		t.Errorf("holders %v, want [a]", h)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	flush(t, p)
	if _, err := os.Stat(path); err == nil {
		t.Error("written though nothing changed")
	}
}

func TestNobodyWaitsForTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "boot", "192.0.2.0/24")
	lease(t, p, "a")
	// Another writer of the file stands for a disk that takes its time.
	aside, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer aside.Close()
	if err := unix.Flock(int(aside.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- p.Flush() }()
	leased := make(chan error, 1)
	go func() {
		for begun := false; !begun; {
			p.mu.Lock()
			begun = !p.ahead
			p.mu.Unlock()
		}
		_, err := p.Lease("b")
		leased <- err
	}()
	select {
	case err := <-leased:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a lease waits until the file is written")
	}
	select {
	case err := <-flushed:
		t.Errorf("written meanwhile: %v", err)
	default:
	}
	if err := unix.Flock(int(aside.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
	flush(t, p)
	if h := open(t, path, "boot", "192.0.2.0/24").Holders(); !slices.Equal(h, []string{"a", "b"}) {
		t.Errorf("holders %v, want [a b]", h)
	}
}

func TestCIDRsWithoutRoomAreRefused(t *testing.T) {
	for _, cidrs := range [][]string{{}, {"192.0.2.0/31"}, {"2001:db8::/127"}} {
		if _, err := Open(Config{Path: filepath.Join(t.TempDir(), "x"), CIDRs: prefixes(cidrs...)}); err == nil {
			t.Errorf("%v: no error", cidrs)
		}
	}
}

func TestConcurrentLeasesAreDistinct(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "ipam.json"), "boot", "192.0.2.0/25", "2001:db8::/64")
	const pods = 50
	addrs := make([][]netip.Addr, pods)
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			var err error
			if addrs[i], err = p.Lease(fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for _, as := range addrs {
		for _, a := range as {
			if seen[a] {
				t.Errorf("%s leased twice", a)
			}
			seen[a] = true
		}
	}
	if len(seen) != 2*pods {
		t.Errorf("%d addresses, want %d", len(seen), 2*pods)
	}
}

// Random leases, releases, restarts and boots against a map: no address has two
// holders, none is reserved, none is lost.
func TestPoolAgainstModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "ipam.json")
		_ = os.Remove(path)
		p, err := Open(Config{Path: path, BootID: "0", CIDRs: prefixes("192.0.2.0/29", "2001:db8::/64")})
		if err != nil {
			t.Fatal(err)
		}
		model := map[string]netip.Addr{}
		boot := 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			holder := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"}).Draw(t, "holder")
			switch rapid.SampledFrom([]string{"lease", "lease", "release", "restart", "boot"}).Draw(t, "step") {
			case "lease":
				addrs, err := p.Lease(holder)
				if err != nil {
					if len(model) < 5 {
						t.Fatalf("lease with %d of 5 taken: %v", len(model), err)
					}
					continue
				}
				for other, a := range model {
					if (other == holder) != (a == addrs[0]) {
						t.Fatalf("%s got %s, %s has %s", holder, addrs[0], other, a)
					}
				}
				if n := addrs[0].As4()[3]; n < 2 || n > 6 || addrs[1].As16()[15] != n {
					t.Fatalf("leased %v", addrs)
				}
				model[holder] = addrs[0]
			case "release":
				p.Release(holder)
				delete(model, holder)
			case "boot":
				boot++
				clear(model)
				fallthrough
			case "restart":
				if err := p.Flush(); err != nil {
					t.Fatal(err)
				}
				if p, err = Open(Config{Path: path, BootID: fmt.Sprint(boot), CIDRs: prefixes("192.0.2.0/29", "2001:db8::/64")}); err != nil {
					t.Fatal(err)
				}
			}
			if len(p.Holders()) != len(model) {
				t.Fatalf("holders %v, want those of %v", p.Holders(), model)
			}
		}
	})
}
