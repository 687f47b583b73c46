package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Processes that confine themselves are this program again: their first argument
// says what they do, the second is a directory of theirs. They print a line for each
// thing they try: its name, a colon, and the errno that came of it, or "done".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "confined" {
		confined(os.Args[2], os.Args[3])
		return
	}
	os.Exit(m.Run())
}

func confined(as, dir string) {
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	own := Files{dir, Read | Write}
	rights := map[string]Rights{"dataplane": Dataplane(own), "store": Store(own), "keeper": Keeper(os.Args[0], own)}[as]
	var threads []chan func()
	for range 3 { // locked threads, as workers are
		c := make(chan func())
		threads = append(threads, c)
		go func() {
			runtime.LockOSThread()
			for f := range c {
				f()
			}
		}()
	}
	for _, c := range threads {
		c <- func() {}
	}
	kept, err := os.Open("/etc/passwd")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	lacks, err := Apply(rights, On)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	for _, l := range lacks {
		fmt.Println("lack:", l)
	}
	try := func(name string, err error) {
		var errno unix.Errno
		switch {
		case err == nil:
			fmt.Printf("%s: done\n", name)
		case errors.As(err, &errno):
			fmt.Printf("%s: %s\n", name, unix.ErrnoName(errno))
		default:
			fmt.Printf("%s: %v\n", name, err)
		}
	}
	for _, f := range attempts {
		done := make(chan struct{})
		threads[0] <- func() { try(f.name, f.do(dir)); close(done) }
		<-done
	}
	_, err = kept.Read(make([]byte, 8))
	try("read what was open", err)
	after, err := os.ReadFile("/etc/resolv.conf")
	if err == nil && string(after) != string(before) {
		err = errors.New("another file")
	}
	try("read /etc/resolv.conf", err)
	for _, line := range status() {
		fmt.Println(line)
	}
}

func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// bindTo binds a TCP port of loopback.
func bindTo(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

// attempts are what somebody might try who has taken a process over.
var attempts = []struct {
	name string
	do   func(dir string) error
}{
	{"read /etc/shadow", func(string) error { return open("/etc/shadow", unix.O_RDONLY) }},
	{"write /etc/hosts", func(string) error { return open("/etc/hosts", unix.O_WRONLY) }},
	{"write a sysctl", func(string) error { return open("/proc/sys/net/ipv4/ip_forward", unix.O_WRONLY) }},
	{"make a file elsewhere", func(string) error { return open(os.TempDir()+"/vswitch-confine-test", unix.O_WRONLY|unix.O_CREAT) }},
	{"look into process 1", func(string) error { return open("/proc/1/environ", unix.O_RDONLY) }},
	{"make a file of its own", func(dir string) error { return open(dir+"/file", unix.O_WRONLY|unix.O_CREAT) }},
	{"make a directory of its own", func(dir string) error { return unix.Mkdir(dir+"/dir", 0o700) }},
	{"make a socket of its own", func(dir string) error {
		l, err := net.Listen("unix", dir+"/socket")
		if err == nil {
			l.Close()
		}
		return err
	}},
	{"run a shell", func(string) error {
		_, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 0"}, nil)
		return err
	}},
	{"mount", func(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") }},
	{"ptrace", func(string) error { return unix.PtraceAttach(os.Getppid()) }},
	{"kill its parent", func(string) error { return unix.Kill(os.Getppid(), 0) }},
	{"raw socket", func(string) error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	{"packet socket", func(string) error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
	{"netfilter", func(string) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER) }},
	{"UDP socket", func(string) error { return socket(unix.AF_INET6, unix.SOCK_DGRAM, 0) }},
	{"bind port 443", func(string) error { return bindTo(443) }},
	{"bind any port", func(string) error { return bindTo(0) }},
	{"enter a namespace", func(string) error {
		fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	}},
	{"make a user namespace", func(string) error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"load a BPF program", func(string) error {
		_, _, errno := unix.Syscall(unix.SYS_BPF, 0, 0, 0)
		return errno
	}},
	{"memory that is a program", func(string) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	}},
}

// status is what the kernel says of every thread, the same lines once.
func status() []string {
	var out []string
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 4 {
		return []string{fmt.Sprintf("error: %d threads, %v", len(tasks), err)}
	}
	seen := map[string]bool{}
	for _, path := range tasks {
		f, err := os.Open(path)
		if err != nil {
			return []string{"error: " + err.Error()}
		}
		text, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return []string{"error: " + err.Error()}
		}
		for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
			line := strings.Join(strings.Fields(lines.Text()), " ")
			name, _, _ := strings.Cut(line, ":")
			if (strings.HasPrefix(name, "Cap") || strings.HasPrefix(name, "Seccomp") || name == "NoNewPrivs") && !seen[line] {
				seen[line] = true
				out = append(out, line)
			}
		}
	}
	return out
}

// tryAs runs a confined process and returns what it printed, by name.
func tryAs(t *testing.T, as string) map[string][]string {
	t.Helper()
	if usesCgo() {
		t.Skip("needs a program built without cgo, as the daemon is: threads of others can't be reached (the race detector needs cgo)")
	}
	out, err := exec.Command(os.Args[0], "confined", as, t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), ": ")
		got[name] = append(got[name], result)
	}
	for _, lack := range got["lack"] {
		t.Skipf("not all can be shown here: %s", lack)
	}
	return got
}

// want is what comes of each attempt in the three processes.
var want = []struct {
	name                     string
	dataplane, store, keeper string
}{
	{"read /etc/shadow", "EACCES", "EACCES", "done"}, // the keeper reads what its user may
	{"write /etc/hosts", "EACCES", "EACCES", "EACCES"},
	{"write a sysctl", "EACCES", "EACCES", "EACCES"},
	{"make a file elsewhere", "EACCES", "EACCES", "EACCES"},
	{"look into process 1", "EACCES", "EACCES", "EACCES"},
	{"make a file of its own", "done", "done", "done"},
	{"make a directory of its own", "done", "done", "done"},
	{"make a socket of its own", "done", "done", "done"},
	{"run a shell", "EPERM", "EPERM", "EACCES"},
	{"mount", "EPERM", "EPERM", "EPERM"},
	{"ptrace", "EPERM", "EPERM", "EPERM"},
	{"kill its parent", "EPERM", "EPERM", "done"}, // it ends its children by signals
	{"raw socket", "EPERM", "EPERM", "EPERM"},
	{"packet socket", "EPERM", "EPERM", "EPERM"},
	{"netfilter", "EPERM", "EPERM", "done"},
	{"UDP socket", "done", "done", "done"},
	{"bind port 443", "EACCES", "EACCES", "done"},
	{"bind any port", "done", "done", "done"},
	{"enter a namespace", "EPERM", "EPERM", "EPERM"},
	{"make a user namespace", "EPERM", "EPERM", "EPERM"},
	{"load a BPF program", "EPERM", "EPERM", "EPERM"},
	{"memory that is a program", "EPERM", "EPERM", "done"}, // programs it starts are loaded so
	{"read what was open", "done", "done", "done"},
	{"read /etc/resolv.conf", "done", "done", "done"},
	{"NoNewPrivs", "1", "1", "1"},
	{"Seccomp", "2", "2", "2"},
	{"Seccomp_filters", "1", "1", "1"},
	{"CapInh", none, none, none},
	{"CapPrm", none, none, "0000000000000400"},
	{"CapEff", none, none, "0000000000000400"},
	{"CapBnd", none, none, none},
	{"CapAmb", none, none, none},
}

const none = "0000000000000000"

func TestWhatAConfinedRootCannotDo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: what an ordinary user can't do anyway shows nothing")
	}
	for _, as := range []string{"dataplane", "store", "keeper"} {
		got := tryAs(t, as)
		for _, w := range want {
			expect := map[string]string{"dataplane": w.dataplane, "store": w.store, "keeper": w.keeper}[as]
			if have := strings.Join(got[w.name], " and "); have != expect {
				t.Errorf("%s, %s: %s, want %s", as, w.name, have, expect)
			}
		}
		if got["error"] != nil {
			t.Errorf("%s: %v", as, got["error"])
		}
	}
}
