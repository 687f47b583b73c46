package embedded

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// TestMain makes the test's binary what the supervisor starts: given "store" it is
// the store's process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store" {
		os.Exit(storeMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func storeMain(args []string) int {
	var c Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	c.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := Serve(ctx, c, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// tempDir is short enough for a socket's path, unlike t.TempDir with a long name.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, c Config) *Supervisor {
	t.Helper()
	s, err := Start(SupervisorConfig{Store: c, Executable: os.Args[0]})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ready(t *testing.T, s *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func put(t *testing.T, dir, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := dial(t, ClientURL(dir))
	for { // a store that listens may still be electing itself
		if _, err := c.Put(ctx, key, value); err == nil {
			return
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func get(t *testing.T, dir, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := dial(t, ClientURL(dir))
	for {
		r, err := c.Get(ctx, key)
		switch {
		case err == nil && len(r.Kvs) == 1:
			return string(r.Kvs[0].Value)
		case err == nil:
			return ""
		case ctx.Err() != nil:
			t.Fatal(err)
		}
	}
}

func pidOf(t *testing.T, dir string) int {
	t.Helper()
	p := find(dir)
	if p == nil {
		t.Fatal("no store runs")
	}
	return p.pid
}

func TestStoreServesThroughAClosedSocket(t *testing.T) {
	dir := filepath.Join(tempDir(t), "new")
	s := start(t, Config{Dir: dir})
	defer s.Close()
	ready(t, s)
	put(t, dir, "k", "v")
	if got := get(t, dir, "k"); got != "v" {
		t.Errorf("read %q, want v", got)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, SocketPath(dir): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
	pid := pidOf(t, dir)
	s.Close()
	if find(dir) != nil {
		t.Errorf("process %d runs after Close", pid)
	}
}

// A killed store is started again and has what it had.
func TestKilledStoreComesBack(t *testing.T) {
	dir := tempDir(t)
	s := start(t, Config{Dir: dir})
	defer s.Close()
	ready(t, s)
	put(t, dir, "k", "v")
	first := pidOf(t, dir)
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if p := find(dir); p != nil && p.pid != first && answers(dir) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the store did not come back")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := get(t, dir, "k"); got != "v" {
		t.Errorf("read %q after the kill, want v", got)
	}
	if n := s.Restarts(); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
}

// orphan starts a store as a daemon does that is then killed, and waits until it serves.
func orphan(t *testing.T, c Config) *process {
	t.Helper()
	p, err := spawn(os.Args[0], []string{"store"}, &c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	put(t, c.Dir, "k", "v")
	return p
}

func ended(t *testing.T, p *process) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Errorf("process %d still runs", p.pid)
	}
}

// A supervisor that is merely gone, as when its daemon is killed, leaves the store
// running, and the next one takes it over.
func TestStoreOutlivesItsDaemonAndIsFoundAgain(t *testing.T) {
	dir := tempDir(t)
	p := orphan(t, Config{Dir: dir})
	s := start(t, Config{Dir: dir})
	ready(t, s)
	if got := pidOf(t, dir); got != p.pid {
		t.Errorf("process %d serves, want %d, which ran already", got, p.pid)
	}
	s.Close()
	ended(t, p)
	if n := s.Restarts(); n != 0 {
		t.Errorf("%d restarts, want none", n)
	}
}

func TestStoreWithAnotherConfigurationIsReplaced(t *testing.T) {
	dir := tempDir(t)
	c := Config{Dir: dir}
	p := orphan(t, c)
	c.ListenClient = "http://127.0.0.1:" + freePort(t)
	s := start(t, c)
	defer s.Close()
	ended(t, p)
	ready(t, s)
	if got := get(t, dir, "k"); got != "v" {
		t.Errorf("read %q, want v", got)
	}
	if _, err := dial(t, c.ListenClient).Get(t.Context(), "k"); err != nil {
		t.Errorf("further nodes' port: %v", err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(sa.(*unix.SockaddrInet4).Port)
}

func TestSecondStoreOfADirectoryIsRefused(t *testing.T) {
	dir := tempDir(t)
	s := start(t, Config{Dir: dir})
	defer s.Close()
	ready(t, s)
	err := Serve(t.Context(), Config{Dir: dir}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another store") {
		t.Errorf("second store: %v, want it refused by name", err)
	}
}

// A store that can't start says why to whoever waits for it.
func TestReadySaysWhyTheStoreDoesNotStart(t *testing.T) {
	dir := tempDir(t)
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil { // where a directory should be
		t.Fatal(err)
	}
	s := start(t, Config{Dir: dir})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for s.Restarts() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	err := s.Ready(ctx)
	for err == nil { // it listens for a moment before it looks at its data
		err = s.Ready(ctx)
	}
	if !strings.Contains(err.Error(), "data") {
		t.Errorf("%v, want the reason from the log", err)
	}
}

func TestListeningOffLoopbackTakesTLS(t *testing.T) {
	tests := []struct {
		name string
		c    Config
		want string // in the error; empty: none
	}{
		{"loopback in clear text", Config{ListenClient: "http://127.0.0.1:2379"}, ""},
		{"IPv6 loopback in clear text", Config{ListenClient: "http://[::1]:2379"}, ""},
		{"wildcard in clear text", Config{ListenClient: "http://0.0.0.0:2379"}, "want https://"},
		{"IPv6 address in clear text", Config{ListenClient: "http://[2001:db8::1]:2379"}, "want https://"},
		{"clear text that was asked for", Config{ListenClient: "http://192.0.2.1:2379", Insecure: true}, ""},
		{"TLS without a certificate", Config{ListenClient: "https://192.0.2.1:2379"}, "--store-cert FILE"},
		{"TLS that lets every client in", Config{ListenClient: "https://192.0.2.1:2379", Cert: "c", Key: "k"}, "--store-ca"},
		{"TLS with client certificates", Config{ListenClient: "https://192.0.2.1:2379", Cert: "c", Key: "k", CA: "a"}, ""},
		{"a name", Config{ListenClient: "http://localhost:2379"}, "not an address"},
		{"another scheme", Config{ListenClient: "tcp://127.0.0.1:2379"}, "want http or https"},
		{"a path", Config{ListenClient: "http://127.0.0.1:2379/x"}, "want http://ADDRESS:PORT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Dir = "/var/lib/vswitch/store"
			err := tt.c.Validate()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && err == nil:
				t.Error("accepted")
			case tt.want != "" && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.c.ListenClient)):
				t.Errorf("%v; want the value, and %q", err, tt.want)
			}
		})
	}
}

// A store that others watch stops at once: whoever watches keeps at it for ever.
func TestWatchersDoNotHoldUpTheEnd(t *testing.T) {
	dir := tempDir(t)
	s := start(t, Config{Dir: dir})
	defer s.Close()
	ready(t, s)
	put(t, dir, "k", "v")
	c := dial(t, ClientURL(dir))
	watch := c.Watch(t.Context(), "k", clientv3.WithRev(1))
	if r := <-watch; len(r.Events) != 1 {
		t.Fatalf("the watch shows %v", r)
	}
	began := time.Now()
	s.Close()
	if d := time.Since(began); d > 2*time.Second { // without: 5.4 s
		t.Errorf("stopped after %v", d)
	}
}

// What can't be listened on is refused at once, unless the store that holds the
// port is the very one.
func TestWhereTheStoreCannotListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + taken.Addr().String()
	for _, bad := range []string{url, "http://192.0.2.99:2379"} { // taken; not this host's (RFC 5737)
		c := Config{Dir: tempDir(t), ListenClient: bad, Insecure: true}
		s, err := Start(SupervisorConfig{Store: c})
		if err == nil {
			s.Close()
			t.Errorf("%s: accepted", bad)
		} else if !strings.Contains(err.Error(), "--listen-client "+bad) || !strings.Contains(err.Error(), "want an address of this host") {
			t.Errorf("%s: %v; want the flag, the value and what would be right", bad, err)
		}
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: tempDir(t), ListenClient: url}
	first := start(t, c)
	defer first.Close()
	ready(t, first)
	second := start(t, c)
	defer second.Close()
	ready(t, second)
}

func TestArgsAreReadBack(t *testing.T) {
	want := Config{Dir: "/a b", ListenClient: "http://127.0.0.1:1", CA: "ca", Cert: "cert", Key: "key", Insecure: true}
	var got Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	got.AddFlags(fs)
	if err := fs.Parse(want.Args()); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("read back %+v, want %+v", got, want)
	}
}
