package confine

import (
	"slices"

	"golang.org/x/sys/unix"
)

// The lists were made from what the processes call (strace, over the end-to-end
// tests) and are held to it: those tests run in mode Trap.

// whole is the mask of an argument that is looked at as it is.
const whole = ^uint32(0)

// calls makes a list of numbers.
func calls(nrs ...uint32) []Call {
	list := make([]Call, len(nrs))
	for i, nr := range nrs {
		list[i].Nr = nr
	}
	return list
}

// hotCalls are made for every batch of frames. None has a condition.
var hotCalls = append(hotCallsOfArch, calls(
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
	unix.SYS_RECVMMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMSG, unix.SYS_SENDMSG,
	unix.SYS_EPOLL_PWAIT, unix.SYS_FUTEX, unix.SYS_NANOSLEEP,
)...)

// runtimeCalls are those of a Go program that does nothing. pid is the process's own:
// it may signal its threads and nobody else.
func runtimeCalls(pid int) []Call {
	return append(calls(
		unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_SCHED_YIELD, unix.SYS_GETPID, unix.SYS_GETTID,
		unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL,
		unix.SYS_CLOCK_GETTIME, unix.SYS_GETRANDOM, unix.SYS_SCHED_GETAFFINITY,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETPPID,
		unix.SYS_UNAME, unix.SYS_PRLIMIT64, unix.SYS_SYSINFO, unix.SYS_GETRUSAGE,
	),
		// No memory becomes a program.
		Call{unix.SYS_MMAP, []Condition{{Arg: 2, Mask: unix.PROT_EXEC, OneOf: []uint32{0}}}},
		Call{unix.SYS_MPROTECT, []Condition{{Arg: 2, Mask: unix.PROT_EXEC, OneOf: []uint32{0}}}},
		// Threads, not processes.
		Call{unix.SYS_CLONE, []Condition{{Arg: 0, Mask: unix.CLONE_THREAD, OneOf: []uint32{unix.CLONE_THREAD}}, noNamespaces}},
		Call{unix.SYS_TGKILL, []Condition{{Arg: 0, Mask: whole, OneOf: []uint32{uint32(pid)}}}},
		Call{unix.SYS_PRCTL, []Condition{{Arg: 0, Mask: whole, OneOf: []uint32{unix.PR_SET_VMA}}}},
	)
}

// noNamespaces is a condition on clone's flags.
var noNamespaces = Condition{Arg: 0, Mask: namespaceFlags, OneOf: []uint32{0}}

const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// fileCalls are those that files are worked with.
var fileCalls = append(fileCallsOfArch, calls(
	unix.SYS_OPENAT, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_LSEEK, unix.SYS_PREAD64, unix.SYS_PWRITE64,
	unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_FACCESSAT, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
	unix.SYS_FLOCK, unix.SYS_FCNTL, unix.SYS_DUP3,
)...)

// socketCalls are those that sockets are worked with: local ones, TCP, UDP, ping
// sockets and rtnetlink. There are no raw ones and none of other families.
var socketCalls = append(calls(
	unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_CONNECT, unix.SYS_SHUTDOWN,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
	unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_PPOLL,
),
	Call{unix.SYS_SOCKET, []Condition{
		{Arg: 0, Mask: whole, OneOf: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}},
		{Arg: 1, Mask: socketTypeMask, OneOf: []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}},
	}},
	Call{unix.SYS_SOCKET, []Condition{
		{Arg: 0, Mask: whole, OneOf: []uint32{unix.AF_NETLINK}}, {Arg: 2, Mask: whole, OneOf: []uint32{unix.NETLINK_ROUTE}},
	}},
)

// socketTypeMask is what of socket's type isn't a flag (SOCK_TYPE_MASK, include/linux/net.h).
const socketTypeMask = 0xf

// forwardingCalls are the dataplane's own: queues of TAPs, the flow table's memory.
var forwardingCalls = append(calls(unix.SYS_MEMFD_CREATE),
	Call{unix.SYS_IOCTL, []Condition{{Arg: 1, Mask: whole, OneOf: []uint32{
		unix.TUNGETIFF, unix.TUNSETOFFLOAD, unix.TUNSETVNETHDRSZ, unix.TUNSETVNETLE, unix.TUNSETVNETBE,
	}}}},
)

// absentCalls are newer ways of saying what the lists have another call for.
var absentCalls = []uint32{unix.SYS_CLONE3, unix.SYS_OPENAT2, unix.SYS_FACCESSAT2, unix.SYS_STATX, unix.SYS_EPOLL_PWAIT2}

// workCalls is a list for a process that starts no other.
func workCalls(pid int, more ...[]Call) Calls {
	return Calls{
		Listed: slices.Concat(append([][]Call{hotCalls, runtimeCalls(pid), fileCalls, socketCalls}, more...)...),
		Absent: absentCalls,
	}
}

// keeperCalls refuses what neither the keeper nor any program of ours will want,
// and leaves the rest: its children inherit the filter, and one of them may be a
// later version, which calls what this one doesn't know of.
func keeperCalls() Calls {
	refused := calls(
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
		unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
		unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_VHANGUP, unix.SYS_PERSONALITY,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
		unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_MKNODAT, unix.SYS_LOOKUP_DCOOKIE,
	)
	namespaces := noNamespaces
	namespaces.Not = true
	refused = append(refused, Call{unix.SYS_CLONE, []Condition{namespaces}})
	return Calls{Listed: refused, Others: true, Absent: []uint32{unix.SYS_CLONE3}}
}
