package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// TunDevice is what must be open to whoever makes a TAP device.
const TunDevice = "/dev/net/tun"

// Hint names the setting that keeps user namespaces from this user, if one of the
// known ones does; it begins with a line break.
func Hint() string {
	for _, s := range []struct{ key, forbids, allows string }{
		{"kernel.unprivileged_userns_clone", "0", "1"},
		{"user.max_user_namespaces", "0", "15000"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
	} {
		b, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(s.key, ".", "/")))
		if err == nil && strings.TrimSpace(string(b)) == s.forbids {
			return fmt.Sprintf("\n%s is %s here, which forbids it: `sudo sysctl %s=%s` allows it, or run as root", s.key, s.forbids, s.key, s.allows)
		}
	}
	return "\nuser namespaces may be forbidden here (in a container, by its seccomp profile): run as root"
}

// CheckTun reports whether this user can open the TUN device, and how to allow it.
func CheckTun() error {
	fd, err := unix.Open(TunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf(`%s is closed to user %d: %w
Interfaces are TAP devices, so it must be open for reading and writing. To open it until the next boot:
    sudo chmod 0666 %s
and for good, as most distributions ship it:
    echo 'KERNEL=="tun", MODE="0666"' | sudo tee /etc/udev/rules.d/50-tun.rules
It gives no power over the host's network: a TAP device needs CAP_NET_ADMIN in its network namespace all the same`, TunDevice, os.Geteuid(), err, TunDevice)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf(`%s is missing: %w
Load the kernel's tun module (sudo modprobe tun); in a container, give it the device (--device %s)`, TunDevice, err, TunDevice)
	}
	return fmt.Errorf("%s: %w", TunDevice, err)
}
