package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/bound"
	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
)

// The children are this program again. They tell what they do on a pipe whose path
// is their second argument, a word and their pid a line.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		runChild(os.Args[2], os.Args[3])
		return
	}
	os.Exit(m.Run())
}

func runChild(mode, pipe string) {
	out, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		os.Exit(90)
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(out, format+" "+strconv.Itoa(os.Getpid())+"\n", args...)
	}
	must := func(err error) {
		if err != nil {
			say("error %q", err)
			os.Exit(91)
		}
	}
	if mode == "refuses" {
		os.Exit(3)
	}
	c, err := Connect()
	must(err)
	switch mode {
	case "explains":
		_ = c.Refuse(errors.New("it is Monday"))
		os.Exit(3)
	case "hangs":
		must(unix.Pause()) // select {} would be noticed by the runtime, and ended
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, HandOver, syscall.SIGTERM)
	must(c.Begin(context.Background()))
	say("begins")
	if mode == "fails" {
		os.Exit(4)
	}
	if fds, err := c.Get("memory"); err == nil {
		text := make([]byte, 64)
		n, err := unix.Pread(fds[0], text, 0)
		must(err)
		say("finds %s", text[:n])
	} else if !errors.Is(err, fdstore.ErrNotFound) {
		must(err)
	} else {
		fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
		must(err)
		_, err = unix.Write(fd, []byte("kept"))
		must(err)
		must(c.Put("memory", []int{fd}))
	}
	must(c.Ready())
	say("ready")
	if mode == "asks" {
		must(c.Renew())
		for reason := ""; reason == ""; time.Sleep(time.Millisecond) { // between two looks
			reason, err = c.Refused()
			must(err)
			if reason != "" {
				say("refused: %s", reason)
			}
		}
	}
	s := <-told
	say("told %d", s)
}

// run is a keeper of children of one mode, or as mode says at each start.
type run struct {
	t       *testing.T
	lines   chan string
	restart chan os.Signal
	stop    context.CancelFunc
	done    chan error

	takesOver bool
	log       chan string
}

func start(t *testing.T, mode func(n int) string, more ...func(*Config)) *run {
	t.Helper()
	pipe := t.TempDir() + "/pipe"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pipe, os.O_RDWR, 0) // for writing too, so that it never ends
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r := &run{t: t, lines: make(chan string, 64), log: make(chan string, 256), restart: make(chan os.Signal), done: make(chan error, 1)}
	go func() {
		for s := bufio.NewScanner(f); s.Scan(); {
			r.lines <- s.Text()
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	n := 0
	cfg := Config{
		Command: func() []string { n++; return []string{os.Args[0], "child", mode(n), pipe} },
		Restart: r.restart, Log: slog.New(slog.NewTextHandler(r, nil)),
	}
	for _, m := range more {
		m(&cfg)
	}
	r.takesOver = cfg.TakeOver
	go func() { r.done <- Run(ctx, cfg) }()
	return r
}

// Write takes a line of the keeper's log.
func (r *run) Write(line []byte) (int, error) {
	r.log <- string(line)
	return len(line), nil
}

// logs waits until the keeper logs a message.
func (r *run) logs(want string) {
	r.t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case line := <-r.log:
			if strings.Contains(line, want) {
				return
			}
		case <-late:
			r.t.Fatalf("nothing logged for 10 s with %q", want)
		}
	}
}

func always(mode string) func(int) string { return func(int) string { return mode } }

// hears waits for the next line and returns the pid that said it.
func (r *run) hears(want string) int {
	r.t.Helper()
	select {
	case line := <-r.lines:
		word, pid, _ := strings.Cut(line, want+" ")
		id, err := strconv.Atoi(pid)
		if word != "" || err != nil {
			r.t.Fatalf("heard %q, want %q", line, want)
		}
		return id
	case <-time.After(10 * time.Second):
		r.t.Fatalf("heard nothing for 10 s, want %q", want)
	}
	return 0
}

func (r *run) ends(want error) {
	r.t.Helper()
	select {
	case err := <-r.done:
		if !errors.Is(err, want) && fmt.Sprint(err) != fmt.Sprint(want) {
			r.t.Errorf("the keeper ended with %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		r.t.Fatal("the keeper did not end within 10 s")
	}
}

func TestWhatAKilledChildKeptItsSuccessorFinds(t *testing.T) {
	r := start(t, always("works"))
	r.hears("begins")
	pid := r.hears("ready")
	for range 3 {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.hears("begins")
		r.hears("finds kept")
		pid = r.hears("ready")
	}
	r.stop()
	r.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	r.ends(nil)
}

func TestAChildThatRefusesToStartEndsTheKeeper(t *testing.T) {
	start(t, always("refuses")).ends(&ExitError{3})
}

func TestAPlannedRestartEndsTheOneBeforeFirst(t *testing.T) {
	r := start(t, always("works"))
	r.hears("begins")
	old := r.hears("ready")
	r.restart <- syscall.SIGHUP
	if pid := r.hears(fmt.Sprintf("told %d", HandOver)); pid != old {
		t.Errorf("process %d was told to hand over, want %d", pid, old)
	}
	r.hears("begins")
	r.hears("finds kept")
	if pid := r.hears("ready"); pid == old {
		t.Error("no new process")
	}
	r.stop()
	r.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	r.ends(nil)
}

func TestASuccessorThatRefusesLeavesTheOneBefore(t *testing.T) {
	r := start(t, func(n int) string {
		if n == 2 {
			return "refuses"
		}
		return "works"
	})
	r.hears("begins")
	pid := r.hears("ready")
	r.restart <- syscall.SIGHUP
	r.restart <- syscall.SIGHUP // taken only when the first is over; its successor works
	if got := r.hears(fmt.Sprintf("told %d", HandOver)); got != pid {
		t.Errorf("process %d was told to hand over, want %d", got, pid)
	}
	r.hears("begins")
	r.hears("finds kept")
	r.hears("ready")
	r.stop()
	r.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
	r.ends(nil)
}

// Who asked for a successor learns why there is none.
func TestWhyARestartIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, mode, want string }{
		{"the successor says why", "explains", "it is Monday"},
		{"it says nothing", "refuses", os.Args[0] + " ended before it began: exit status 3; what it said is in the daemon's log"},
		{"it neither begins nor ends", "hangs", os.Args[0] + " did nothing for 300ms: is it a vswitch?"},
		{"it is no program", "", "keeper: start the dataplane: fork/exec /dev/null: permission denied; want a program that this user may run, and a static one: CGO_ENABLED=0, as make build has it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, func(n int) string {
				if n == 1 {
					return "asks"
				}
				return tt.mode
			}, func(c *Config) {
				if tt.mode == "hangs" {
					c.BeginTimeout = 300 * time.Millisecond
				}
				command := c.Command
				c.Command = func() []string {
					if args := command(); args[2] != "" {
						return args
					}
					return []string{"/dev/null"}
				}
			})
			r.hears("begins")
			pid := r.hears("ready")
			if got := r.hears("refused: " + tt.want); got != pid {
				t.Errorf("process %d was told, want %d", got, pid)
			}
			r.logs(`msg="restart refused; the dataplane stays"`)
			r.stop()
			r.hears(fmt.Sprintf("told %d", syscall.SIGTERM))
			r.ends(nil)
		})
	}
}

// pair is a client of a keeper without processes.
func pair(t *testing.T) *Client {
	t.Helper()
	return pairOf(t, &child{stock: &bound.Stock{}})
}

// pairOf is a client that speaks to the keeper as one child.
func pairOf(t *testing.T, as *child) *Client {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := fdpass.ConnOf(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	var store fdstore.Memory
	served := make(chan struct{})
	go func() {
		defer close(served)
		as.serve(conn, &store)
	}()
	t.Cleanup(func() {
		c.Close()
		<-served
		conn.Close()
		store.Close()
	})
	return c
}

// A keeper that has no descriptor to spare says so, and goes on when it has.
func TestAKeeperOutOfDescriptorsRefuses(t *testing.T) {
	c := pair(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	set := func(most uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer set(limit.Cur)
	set(3) // as many as the standard ones
	if err := c.Put("tap/x", []int{0, 1}); err == nil || !strings.Contains(err.Error(), "descriptors lost") {
		t.Errorf("put without descriptors to spare: %v", err)
	}
	set(limit.Cur)
	if err := c.Put("tap/x", []int{0, 1}); err != nil {
		t.Errorf("put with some again: %v", err)
	}
	if fds, err := c.Get("tap/x"); err != nil || len(fds) != 2 {
		t.Errorf("get: %v, %v", fds, err)
	} else {
		closeAll(fds)
	}
}

func TestNamesComeInPages(t *testing.T) {
	c := pair(t)
	var want []string
	for i := range 3*namesPerPage + 1 {
		name := fmt.Sprintf("tap/%s%03d", strings.Repeat("x", fdstore.MaxNameBytes-7), i)
		if err := c.Put(name, []int{0}); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	got, err := c.Names()
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d names, %v; want %d", len(got), err, len(want))
	}
	if err := c.Remove(want[0]); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(want[0]); !errors.Is(err, fdstore.ErrNotFound) {
		t.Errorf("after removal: %v, want ErrNotFound", err)
	}
}

func TestTheKeeperBindsForItsChild(t *testing.T) {
	c := pair(t)
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
			fd, err := c.Bind(network, netip.MustParseAddrPort(addr))
			if err != nil {
				t.Errorf("%s %s: %v", network, addr, err)
				continue
			}
			f := os.NewFile(uintptr(fd), "socket")
			if network == "tcp" {
				l, err := net.FileListener(f)
				if err != nil {
					t.Errorf("%s %s: %v", network, addr, err)
				} else {
					l.Close()
				}
			}
			f.Close()
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := c.Bind("tcp", taken.Addr().(*net.TCPAddr).AddrPort()); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "keeper: bind 127.0.0.1:") {
		t.Errorf("a port that is taken: %v, want %v", err, unix.EADDRINUSE)
	}
	tunnel, err := c.BindTunnel(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tunnel)
	sa, err := unix.Getsockname(tunnel)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	if _, err := c.BindTunnel(at); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v, want EADDRINUSE", err)
	}
	for _, bad := range []bind{{"tcp", netip.AddrPort{}}, {"tcp", netip.MustParseAddrPort("0.0.0.0:80")}, {"raw", netip.MustParseAddrPort("127.0.0.1:0")},
		{"tcp", netip.MustParseAddrPort("192.0.2.1:80")}} {
		if fd, err := c.Bind(bad.Network, bad.Addr); err == nil {
			unix.Close(fd)
			t.Errorf("%v: no error", bad)
		}
	}
}

func TestTheKeeperOpensTheResolversFile(t *testing.T) {
	want, err := os.ReadFile(resolversFile)
	if err != nil {
		t.Skipf("needs %s: %v", resolversFile, err)
	}
	f, err := pair(t).OpenResolvers()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != string(want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
