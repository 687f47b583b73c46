package fdpass

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func sendmsg(s int, m *unix.Msghdr) error {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(s), uintptr(unsafe.Pointer(m)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
