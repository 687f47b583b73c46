package e2ek8s

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// watcher uses the network all the time, and remembers what failed.
type watcher struct {
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex // guards the rest
	asked  int
	failed []string
}

func newWatcher(t *testing.T) *watcher {
	w := &watcher{}
	w.ctx, w.stop = context.WithCancel(context.Background())
	t.Cleanup(func() { w.stop(); w.wg.Wait() })
	return w
}

// repeat calls f every so often until the watcher ends.
func (w *watcher) repeat(what string, every time.Duration, f func() error) {
	w.wg.Go(func() {
		for tick := time.NewTicker(every); ; {
			err := f()
			w.mu.Lock()
			w.asked++
			if err != nil {
				w.failed = append(w.failed, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), what, err))
			}
			w.mu.Unlock()
			select {
			case <-tick.C:
			case <-w.ctx.Done():
				tick.Stop()
				return
			}
		}
	})
}

// open holds one connection to a hello server and asks over it.
func (w *watcher) open(t *testing.T, what string, from *lab.Namespace, to netip.AddrPort) {
	t.Helper()
	var conn net.Conn
	eventually(t, what, func() (err error) { conn, err = dial(from, "tcp", to); return err })
	t.Cleanup(func() { conn.Close() })
	w.repeat(what+", one connection", 100*time.Millisecond, func() error {
		_, err := askOver(conn, "tcp")
		return err
	})
}

// connect makes new connections to a hello server.
func (w *watcher) connect(what string, from *lab.Namespace, network string, to netip.AddrPort) {
	w.repeat(what+", new "+network, 200*time.Millisecond, func() error {
		_, err := ask(from, network, to)
		return err
	})
}

// end stops the traffic and fails the test if any of it was lost.
func (w *watcher) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("asked %d times", w.asked)
	if w.asked == 0 {
		t.Error("there was no traffic")
	}
	for i, f := range w.failed {
		if i == 20 {
			t.Errorf("and %d more", len(w.failed)-i)
			break
		}
		t.Error(f)
	}
}
