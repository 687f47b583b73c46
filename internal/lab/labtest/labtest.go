// Package labtest makes a lab for a test: it ends with the test, and a failed
// test's output holds what the lab's processes said last.
package labtest

import (
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"vswitch/internal/lab"
)

// NeedRoot skips a test that makes network namespaces when it may not.
func NeedRoot(t testing.TB) {
	t.Helper()
	if !lab.Privileged() {
		t.Skip("needs root: it makes network namespaces (run `sudo make test`, or `unshare -Urnm make test`)")
	}
}

// New makes a lab, without nodes, that is closed when the test ends, or when
// the test binary gets SIGINT or SIGTERM.
func New(t testing.TB, cfg lab.Config) *lab.Lab {
	t.Helper()
	NeedRoot(t)
	if cfg.Logf == nil {
		cfg.Logf = t.Logf
	}
	if cfg.Confine == "" {
		cfg.Confine = "trap" // a system call that is missing from the lists is a failure
	}
	l, err := lab.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	open.add(l)
	t.Cleanup(func() {
		if said := l.Trapped(); said != "" {
			t.Errorf("a daemon made a system call that it has given up (internal/confine/calls.go)\n%s", said)
		}
		if said := l.Failures(60); t.Failed() && said != "" {
			t.Log("what the lab's processes said last\n" + said)
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		open.remove(l)
	})
	return l
}

// Long reports whether a test is to run in its full form: `make test-long` and
// `make soak` ask for it by $VSWITCH_TEST.
func Long() bool {
	v := os.Getenv("VSWITCH_TEST")
	return v == "long" || v == "soak"
}

// BinDir finds the built binaries: $VSWITCH_BIN, or bin/ at the top of the
// source tree. Without them the test fails, since `make build` makes them.
func BinDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("VSWITCH_BIN")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for dir = wd; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				break
			}
			if dir == filepath.Dir(dir) {
				t.Fatalf("no go.mod above %s: set VSWITCH_BIN to the directory of the built binaries", wd)
			}
		}
		dir = filepath.Join(dir, "bin")
	}
	for _, name := range []string{"vswitch", "vswitch-cni"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v: run `make build` first, or set VSWITCH_BIN", err)
		}
	}
	return dir
}

// open are the labs to close on a signal: a test binary that is interrupted
// runs no cleanup.
var open openLabs

type openLabs struct {
	once sync.Once
	mu   sync.Mutex // guards labs
	labs map[*lab.Lab]bool
}

func (o *openLabs) add(l *lab.Lab) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.labs == nil {
		o.labs = map[*lab.Lab]bool{}
	}
	o.labs[l] = true
	o.once.Do(func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		go func() {
			s := <-signals
			signal.Stop(signals)
			o.mu.Lock()
			for l := range o.labs {
				l.Close()
			}
			o.mu.Unlock()
			// Die of the signal, as if it had not been caught.
			syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}()
	})
}

func (o *openLabs) remove(l *lab.Lab) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.labs, l)
}
