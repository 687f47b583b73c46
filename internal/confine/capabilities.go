package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of PR_SET_SECUREBITS (include/uapi/linux/securebits.h), each with its lock
// one above: being root gives no capabilities, neither by exec nor by changing
// user ids, and none is kept or raised in a way around that.
const (
	secbitNoroot              = 1 << 0
	secbitNoSetuidFixup       = 1 << 2
	secbitKeepCapsLocked      = 1 << 5
	secbitNoCapAmbientRaise   = 1 << 6
	securebits                = secbitNoroot | secbitNoroot<<1 | secbitNoSetuidFixup | secbitNoSetuidFixup<<1 | secbitKeepCapsLocked | secbitNoCapAmbientRaise | secbitNoCapAmbientRaise<<1
	capabilityVersion         = unix.LINUX_CAPABILITY_VERSION_3
	capabilityWords           = 2
	capabilityWordBits        = 32
	highestCapabilityPossible = capabilityWords*capabilityWordBits - 1
)

// dropCapabilities leaves the permitted and effective sets with those of keep that
// the process has, and the others empty. The bounding set can be emptied only with
// CAP_SETPCAP; without it nothing can be gained all the same, by no_new_privs.
func dropCapabilities(keep []int) error {
	head := unix.CapUserHeader{Version: capabilityVersion}
	var have [capabilityWords]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		return fmt.Errorf("confine: capget: %w", err)
	}
	if have[unix.CAP_SETPCAP/capabilityWordBits].Effective&(1<<(unix.CAP_SETPCAP%capabilityWordBits)) != 0 {
		if err := emptyBounding(); err != nil {
			return err
		}
		if err := onAllThreads("securebits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, securebits); err != nil {
			return err
		}
	}
	if err := onAllThreads("ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return err
	}
	var left [capabilityWords]unix.CapUserData
	for _, c := range keep {
		word, bit := c/capabilityWordBits, uint32(1)<<(c%capabilityWordBits)
		left[word].Permitted |= have[word].Permitted & bit
	}
	for i := range left {
		left[i].Effective = left[i].Permitted
	}
	head.Pid = 0 // the calling thread
	return onAllThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&left[0])))
}

func emptyBounding() error {
	for c := uintptr(0); c <= highestCapabilityPossible; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			return nil // one behind the kernel's last
		}
		if set == 0 {
			continue
		}
		if err := onAllThreads(fmt.Sprintf("bounding set, capability %d", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c); err != nil {
			return err
		}
	}
	return nil
}
