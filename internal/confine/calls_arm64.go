package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// Calls that only this machine has, or has by another name.
var (
	hotCallsOfArch  []Call
	fileCallsOfArch = calls(unix.SYS_FSTATAT, unix.SYS_RENAMEAT)
)
