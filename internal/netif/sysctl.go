package netif

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// /proc/sys/net shows each thread the values of the namespace it is in.
const ipv6ConfDir = "/proc/sys/net/ipv6/conf"

// IPv6Sysctl is the path of a setting of one interface; a path, since an
// interface's name may have dots.
func IPv6Sysctl(ifname, key string) string { return filepath.Join(ipv6ConfDir, ifname, key) }

// HasIPv6 reports whether the interface has IPv6 settings at all; it has none
// when the kernel was started with ipv6.disable=1 or built without.
func HasIPv6(ifname string) bool {
	_, err := os.Stat(filepath.Join(ipv6ConfDir, ifname))
	return err == nil
}

// SetSysctl writes a value that isn't there already: a container's /proc/sys may
// be read-only, and right as it is. It calls the kernel by itself, since package os would
// have the runtime's poller wait for such a file.
func SetSysctl(path, value string) error {
	have, err := readFile(path)
	if err == nil && have == value {
		return nil
	}
	if err := writeFile(path, value); err != nil {
		return fmt.Errorf("set sysctl to %s (it is %q): %w", value, have, err)
	}
	return nil
}

func readFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [64]byte // the kernel's numbers are short
	n, err := unix.Read(fd, b[:])
	return strings.TrimSpace(string(b[:max(n, 0)])), err
}

func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	_, err = unix.Write(fd, []byte(value))
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
