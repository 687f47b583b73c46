package confine

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls says which system calls a process may make.
//
// The filter compares one number after the other, in the order of the list, so that
// what a worker does for each batch is found first. Since Linux 5.11 it isn't even
// run for a call that is allowed whatever its arguments: the kernel keeps a bitmap of
// those (kernel/seccomp.c, seccomp_cache_prepare).
type Calls struct {
	Listed []Call
	// Others says what becomes of calls that are not listed: allowed, or not. Those
	// that are listed have the other fate.
	Others bool
	// Absent calls are answered as by a kernel that doesn't have them (ENOSYS): whoever
	// makes them knows what to do without.
	Absent []uint32
}

// Call is a system call, by number. Of several with one number any may hold.
type Call struct {
	Nr   uint32
	When []Condition // all hold; none: always
}

// Condition is on the low 32 bits of one argument: masked, it is one of the values,
// or, with Not, none of them.
type Condition struct {
	Arg   int // from 0 to 5
	Mask  uint32
	OneOf []uint32
	Not   bool
}

// Places in struct seccomp_data (include/uapi/linux/seccomp.h), of little-endian machines.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
	argBytes = 8
)

// x32Calls and above are calls of amd64's third ABI, which nothing here uses. No
// other machine has numbers as large.
const x32Calls = 0x40000000

// Instructions (linux/filter.h).
const (
	load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jump = unix.BPF_JMP | unix.BPF_JA
	ret  = unix.BPF_RET | unix.BPF_K
)

// program is the filter's code. deny is what it returns for what isn't allowed.
func (c *Calls) program(deny uint32) []unix.SockFilter {
	listed, others := uint32(unix.SECCOMP_RET_ALLOW), deny
	if c.Others {
		listed, others = others, listed
	}
	absent := unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: jeq, Jt: 1, K: auditArch},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: dataNr},
	}
	for _, call := range c.Listed {
		body := call.body(listed)
		p = append(p, unix.SockFilter{Code: jeq, Jf: uint8(len(body)), K: call.Nr})
		p = append(p, body...)
	}
	for _, nr := range c.Absent {
		p = append(p, unix.SockFilter{Code: jeq, Jf: 1, K: nr}, unix.SockFilter{Code: ret, K: absent})
	}
	return append(p,
		unix.SockFilter{Code: jge, Jf: 1, K: x32Calls}, unix.SockFilter{Code: ret, K: absent},
		unix.SockFilter{Code: ret, K: others})
}

// body is what runs when the number is found: it returns the listed call's fate, or
// goes on behind itself, with the number loaded again, if a condition does not hold.
func (c *Call) body(listed uint32) []unix.SockFilter {
	var body []unix.SockFilter
	var exits []int // jumps to the end
	for _, w := range c.When {
		body = append(body, unix.SockFilter{Code: load, K: dataArgs + argBytes*uint32(w.Arg)}, unix.SockFilter{Code: and, K: w.Mask})
		// Two jumps end the condition: one to where a value leads, one for no value.
		for i, v := range w.OneOf {
			body = append(body, unix.SockFilter{Code: jeq, Jt: uint8(len(w.OneOf) - i), K: v})
		}
		over := unix.SockFilter{Code: jump, K: 1}
		if w.Not {
			body = append(body, over, unix.SockFilter{Code: jump})
			exits = append(exits, len(body)-1)
		} else {
			body = append(body, unix.SockFilter{Code: jump})
			exits = append(exits, len(body)-1)
		}
	}
	body = append(body, unix.SockFilter{Code: ret, K: listed})
	if len(exits) > 0 {
		body = append(body, unix.SockFilter{Code: load, K: dataNr})
	}
	for _, at := range exits { // to the load
		body[at].K = uint32(len(body) - 1 - at - 1)
	}
	return body
}

// install sets the filter for all threads. It needs no_new_privs.
func (c Calls) install(m Mode) error {
	if auditArch == 0 {
		return &NeedsKernel{What: "a filter of system calls", Want: "amd64 or arm64", Err: fmt.Errorf("this is %s", runtime.GOARCH)}
	}
	deny := unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	if m == Trap {
		deny = unix.SECCOMP_RET_TRAP
	}
	code := c.program(deny)
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_LOG)
	errno := setFilter(flags, &prog)
	if errno == unix.EINVAL { // before Linux 4.14 denials can't be logged
		errno = setFilter(unix.SECCOMP_FILTER_FLAG_TSYNC, &prog)
	}
	switch {
	case errno == 0:
		return nil
	case slices.Contains([]unix.Errno{unix.ENOSYS, unix.EINVAL, unix.EPERM}, errno):
		return &NeedsKernel{What: "a filter of system calls", Want: "Linux 3.17 with CONFIG_SECCOMP_FILTER", Err: errno}
	}
	return fmt.Errorf("confine: seccomp: %w", errno)
}

func setFilter(flags uintptr, prog *unix.SockFprog) unix.Errno {
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	if errno == 0 && thread != 0 { // a thread has another filter: it was never ours
		return unix.ESRCH
	}
	return errno
}
