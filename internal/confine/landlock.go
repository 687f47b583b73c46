package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights over files by the version of Landlock's ABI that brought them (landlock(7)).
var landlockRights = []struct {
	abi    int
	rights uint64
}{
	{1, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM},
	{2, unix.LANDLOCK_ACCESS_FS_REFER},     // Linux 5.19
	{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},  // Linux 6.2
	{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}, // Linux 6.10
}

const (
	landlockRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_REFER |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
	landlockExecute = unix.LANDLOCK_ACCESS_FS_EXECUTE
	// landlockOfFiles are the rights that mean something for what is no directory.
	landlockOfFiles = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

func (a Access) landlock() (rights uint64) {
	for _, r := range []struct {
		access Access
		rights uint64
	}{{Read, landlockRead}, {Write, landlockWrite}, {Execute, landlockExecute}} {
		if a&r.access != 0 {
			rights |= r.rights
		}
	}
	return rights
}

// restrictFiles bounds what can be opened from now on. It needs no_new_privs.
func restrictFiles(files []Files) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 { // ENOSYS: not built in; EOPNOTSUPP: not switched on; EPERM: a container's filter
		return &NeedsKernel{What: "bounding files", Want: "Linux 5.13 with landlock among its security modules (lsm=)", Err: errno}
	}
	attr := unix.LandlockRulesetAttr{}
	for _, r := range landlockRights {
		if int(abi) >= r.abi {
			attr.Handled_access_fs |= r.rights
		}
	}
	// Only the first field is told, which all versions have.
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("confine: landlock: %w", errno)
	}
	defer unix.Close(int(set))
	for _, f := range files {
		if err := allow(set, f, attr.Handled_access_fs); err != nil {
			return fmt.Errorf("confine: landlock: %s: %w", f.Path, err)
		}
	}
	return onAllThreads("landlock", unix.SYS_LANDLOCK_RESTRICT_SELF, set)
}

// allow adds a rule. A path that isn't there, or that this user can't reach, has none.
func allow(set uintptr, f Files, handled uint64) error {
	fd, err := unix.Open(f.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: f.Access.landlock() & handled, Parent_fd: int32(fd)}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rule.Allowed_access &= landlockOfFiles
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, set, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
