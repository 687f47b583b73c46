package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// watch is a connection over which a message goes back and forth all the time.
type watch struct {
	name string
	conn net.Conn
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	count   int
	longest time.Duration // of one message and its answer
	err     error
}

// watchPause lies between two messages: often enough to see a stall of a few ms.
const watchPause = time.Millisecond

func newWatch(t *testing.T, name string, from *lab.Namespace, to netip.AddrPort) *watch {
	t.Helper()
	conn, err := dial(from, "tcp", netip.AddrPort{}, to)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	w := &watch{name: name, conn: conn, stop: make(chan struct{}), done: make(chan struct{})}
	t.Cleanup(func() { conn.Close(); <-w.done })
	go w.run()
	return w
}

func (w *watch) run() {
	defer close(w.done)
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	sent, got := make([]byte, 64), make([]byte, 64)
	for n := 0; ; n++ {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		copy(sent, fmt.Sprintf("%s %d", w.name, n))
		began := time.Now()
		_, err := w.conn.Write(sent)
		if err == nil {
			_, err = io.ReadFull(w.conn, got)
		}
		if err == nil && !bytes.Equal(sent, got) {
			err = fmt.Errorf("sent %q, got %q", sent, got)
		}
		took := time.Since(began)
		w.mu.Lock()
		w.count++
		w.longest = max(w.longest, took)
		w.err = err
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// lap waits until messages went through since the last lap, and returns the
// longest time that one of them took.
func (w *watch) lap(ctx context.Context) (time.Duration, error) {
	const enough = 5
	for {
		w.mu.Lock()
		count, longest, err := w.count, w.longest, w.err
		if err != nil || count >= enough {
			w.count, w.longest = 0, 0
			w.mu.Unlock()
			return longest, err
		}
		w.mu.Unlock()
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: nothing went through: %w", w.name, context.Cause(ctx))
		}
	}
}

// echo makes a pod send back what it gets.
func echo(t *testing.T, p *lab.Pod, port uint16) {
	t.Helper()
	listenTCP(t, p.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), port), func(c net.Conn) { io.Copy(c, c) })
}

// TestDataplaneKilled kills the dataplane again and again, its keeper staying, and
// wants the same connections to go on.
func TestDataplaneKilled(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watches := []*watch{}
	c.eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		name := t.Name()
		if family == 4 {
			echo(c.t, to, 7)
		}
		watches = append(watches, newWatch(c.t, name, from.Namespace, netip.AddrPortFrom(to.IP(family), 7)))
	})
	for kill := range 5 {
		for _, w := range watches {
			if _, err := w.lap(ctx); err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
		}
		pid, err := c.nodes[0].Dataplane()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.eventually("another dataplane", func() error {
			p, err := c.nodes[0].Dataplane()
			if err == nil && p == pid {
				err = fmt.Errorf("still process %d", pid)
			}
			return err
		})
		for _, w := range watches {
			longest, err := w.lap(ctx)
			if err != nil {
				t.Fatalf("kill %d: %s: %v", kill+1, w.name, err)
			}
			t.Logf("kill %d: %s: longest stall %v", kill+1, w.name, longest)
		}
	}
}
