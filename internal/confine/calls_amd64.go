package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// Calls that only this machine has, or has by another name.
var (
	hotCallsOfArch  = calls(unix.SYS_EPOLL_WAIT)
	fileCallsOfArch = calls(unix.SYS_NEWFSTATAT, unix.SYS_RENAMEAT, unix.SYS_POLL)
)
