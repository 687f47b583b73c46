package confine

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// run has a list's filter judge a call. x/net/bpf's machine loads words in network
// order, so that is how the data is laid out.
func run(t *testing.T, c Calls, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, nr)
	data = binary.BigEndian.AppendUint32(data, arch)
	data = binary.BigEndian.AppendUint64(data, 0) // instruction pointer
	for i := range 6 {
		var a uint64
		if i < len(args) {
			a = args[i]
		}
		data = binary.BigEndian.AppendUint32(data, uint32(a)) // low half first, as on the machine
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	var code []bpf.RawInstruction
	for _, i := range c.program(denied) {
		code = append(code, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	instructions, ok := bpf.Disassemble(code)
	if !ok {
		t.Fatal("the filter holds an instruction that isn't one")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

const (
	allowed = uint32(unix.SECCOMP_RET_ALLOW)
	denied  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	absent  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	killed  = uint32(unix.SECCOMP_RET_KILL_PROCESS)
)

func TestWhatTheFiltersSay(t *testing.T) {
	if auditArch == 0 {
		t.Skip("there is no filter for this machine")
	}
	const pid = 4242
	threadFlags := uint64(unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM)
	work, keep := workCalls(pid, forwardingCalls), keeperCalls()
	for _, tt := range []struct {
		name string
		c    Calls
		nr   uint32
		args []uint64
		want uint32
	}{
		{"what a worker does first", work, unix.SYS_READ, nil, allowed},
		{"a call of the list's end", work, unix.SYS_MEMFD_CREATE, nil, allowed},
		{"a call on no list", work, unix.SYS_MOUNT, nil, denied},
		{"a program", work, unix.SYS_EXECVE, nil, denied},
		{"a thread", work, unix.SYS_CLONE, []uint64{threadFlags}, allowed},
		{"a process", work, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, denied},
		{"a thread with a namespace", work, unix.SYS_CLONE, []uint64{threadFlags | unix.CLONE_NEWNET}, denied},
		{"clone as it can't be looked into", work, unix.SYS_CLONE3, nil, absent},
		{"memory", work, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allowed},
		{"memory that is a program", work, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, denied},
		{"memory that becomes a program", work, unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_EXEC}, denied},
		{"a signal to a thread of its own", work, unix.SYS_TGKILL, []uint64{pid, pid + 1, 23}, allowed},
		{"a signal to another process", work, unix.SYS_TGKILL, []uint64{1, 1, 9}, denied},
		{"a signal to whom it may concern", work, unix.SYS_KILL, []uint64{1, 9}, denied},
		{"a local socket", work, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC}, allowed},
		{"a TCP socket", work, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, allowed},
		{"a ping socket", work, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, allowed},
		{"a raw socket", work, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP}, denied},
		{"a packet socket", work, unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_DGRAM}, denied},
		{"rtnetlink", work, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allowed},
		{"netfilter", work, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, denied},
		{"a TAP's offloads", work, unix.SYS_IOCTL, []uint64{5, unix.TUNSETOFFLOAD}, allowed},
		{"a terminal's input", work, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, denied},
		{"a call of x32", work, x32Calls | unix.SYS_READ, nil, absent},
		{"a TAP in the store", workCalls(pid), unix.SYS_IOCTL, []uint64{5, unix.TUNSETOFFLOAD}, denied},

		{"a program of the keeper's", keep, unix.SYS_EXECVE, nil, allowed},
		{"a process of the keeper's", keep, unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, allowed},
		{"a namespace of the keeper's", keep, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD) | unix.CLONE_NEWUSER}, denied},
		{"a mount of the keeper's", keep, unix.SYS_MOUNT, nil, denied},
		{"what no version knows yet", keep, 1999, nil, allowed},
	} {
		if got := run(t, tt.c, auditArch, tt.nr, tt.args...); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
	if got := run(t, work, auditArch+1, unix.SYS_READ); got != killed {
		t.Errorf("a call by another machine's numbers: %#x, want %#x", got, killed)
	}
}

// TestListsAreSound keeps them from saying one thing twice, or two things.
func TestListsAreSound(t *testing.T) {
	for name, c := range map[string]Calls{"dataplane": workCalls(1, forwardingCalls), "store": workCalls(1), "keeper": keeperCalls()} {
		var seen []uint32
		for _, call := range c.Listed {
			if slices.Contains(seen, call.Nr) && len(call.When) == 0 {
				t.Errorf("%s: call %d is listed twice", name, call.Nr)
			}
			if slices.Contains(c.Absent, call.Nr) {
				t.Errorf("%s: call %d is listed and said to be absent", name, call.Nr)
			}
			if body := call.body(allowed); len(body) > 255 { // what a jump can skip
				t.Errorf("%s: call %d has %d instructions", name, call.Nr, len(body))
			}
			seen = append(seen, call.Nr)
		}
		if n := len(c.program(denied)); n > unix.BPF_MAXINSNS {
			t.Errorf("%s: %d instructions, want %d at most", name, n, unix.BPF_MAXINSNS)
		}
	}
}

// TestHotCallsComeFirst holds what a worker does for each batch ahead of the rest.
func TestHotCallsComeFirst(t *testing.T) {
	if auditArch == 0 {
		t.Skip("there is no filter for this machine")
	}
	first := workCalls(1, forwardingCalls).Listed[:len(hotCalls)]
	for _, nr := range []uint32{unix.SYS_READ, unix.SYS_WRITEV, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG, unix.SYS_EPOLL_PWAIT, unix.SYS_FUTEX} {
		i := slices.IndexFunc(first, func(c Call) bool { return c.Nr == nr })
		if i < 0 || len(first[i].When) > 0 {
			t.Errorf("call %d is not among the first, without condition", nr)
		}
	}
}
