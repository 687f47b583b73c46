package netif

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
// be read-only, and right as it is.
func SetSysctl(path, value string) error {
	have, readErr := os.ReadFile(path)
	if readErr == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	// No O_CREATE: a name that isn't there should be told as such.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set sysctl to %s (it is %q): %w", value, strings.TrimSpace(string(have)), err)
	}
	return nil
}
