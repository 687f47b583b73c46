package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"

	"vswitch/cni/cnitest"
)

func compact(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestParallelAdds is the second part of case 71: fifty at once, with addresses
// for forty.
func TestParallelAdds(t *testing.T) {
	const pods, addresses = 50, 40
	h := newHost(t, cnitest.Config{Addresses: addresses})
	spaces := make([]*cnitest.Netns, pods)
	for i := range spaces {
		spaces[i] = cnitest.NewNetns(t)
	}
	all := func(command string) []error {
		errs := make([]error, pods)
		var wg sync.WaitGroup
		for i, n := range spaces {
			wg.Go(func() { _, errs[i] = h.invoke(h.good(command, fmt.Sprintf("c%d", i), n)) })
		}
		wg.Wait()
		return errs
	}
	added := 0
	for i, err := range all("ADD") {
		if err != nil {
			if codeOf(t, err) != 11 {
				t.Errorf("c%d: %v", i, err)
			}
			continue
		}
		added++
		if err := ping(spaces[i], "eth0", cnitest.Gateway6); err != nil {
			t.Errorf("c%d: ping: %v", i, err)
		}
	}
	if added != addresses {
		t.Errorf("%d pods were added, want %d", added, addresses)
	}
	seen := map[string]string{}
	for _, a := range h.daemon.Attachments() {
		for _, ip := range a.GetIps() {
			if other, ok := seen[ip]; ok {
				t.Errorf("%s belongs to %s and %s", ip, other, a.GetKey().GetContainerId())
			}
			seen[ip] = a.GetKey().GetContainerId()
		}
	}
	for i, err := range all("DEL") {
		if err != nil {
			t.Errorf("DEL c%d: %v", i, err)
		}
	}
	h.wantClean(spaces...)
}

// TestCyclesLeakNothing is a short form of case 65.
func TestCyclesLeakNothing(t *testing.T) {
	const cycles = 20
	h := newHost(t, cnitest.Config{})
	n := cnitest.NewNetns(t)
	cycle := func() {
		h.must(h.good("ADD", "c1", n))
		// The first packet, at once: ADD must not succeed before the kernel takes
		// the answer (waitLocal).
		if err := ping(n, "eth0", cnitest.Gateway6); err != nil {
			t.Errorf("the first ping: %v", err)
		}
		h.must(h.good("DEL", "c1", n))
	}
	cycle() // what is made once, such as the poller, is made
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	for range cycles {
		cycle()
	}
	h.wantClean(n)
	if now := openFDs(t); now > fds+2 {
		t.Errorf("%d descriptors are open, %d were before %d cycles", now, fds, cycles)
	}
	if now := runtime.NumGoroutine(); now > goroutines+4 {
		t.Errorf("%d goroutines run, %d did before %d cycles", now, goroutines, cycles)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
