// Package resident keeps a process's resident memory to what it uses.
package resident

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim gives back what only starting up needed. Initialising the packages of a large
// program touches some 20 MB of code and constants, and leaves garbage. Unmapped from
// a mapping that nobody writes to, code and constants come back from the file as they
// are needed (madvise(2), MADV_DONTNEED): some hundred page faults.
func Trim() error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("resident: trim: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("resident: trim: %w", err)
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		start, end, ok := constant(lines.Text(), program)
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("resident: trim %#x-%#x: %w", start, end, errno)
		}
	}
	return lines.Err()
}

// constant finds a mapping of the program that can't be written to in a line of
// /proc/self/maps (proc_pid_maps(5)):
//
//	00400000-01a2b000 r-xp 00000000 fd:01 1234   /usr/bin/vswitch
func constant(line, program string) (start, end uintptr, ok bool) {
	var perms string
	if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &perms); err != nil {
		return 0, 0, false
	}
	return start, end, perms[0] == 'r' && perms[1] == '-' && strings.HasSuffix(line, " "+program)
}
