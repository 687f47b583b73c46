package inside

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What a container engine wants of the machine, besides a network: Setup.Engine.

// engineDirs are where engines write, and so do the plugins, the runtimes and the
// kubelet that they come with.
var engineDirs = []string{
	"/etc", "/opt", "/run", "/var/cache", "/var/lib", "/var/log",
	"/usr/lib/cni", "/usr/libexec/cni", // plugins, where distributions have theirs
}

const cgroupDir = "/sys/fs/cgroup"

// mountEngine mounts the kernel's own file systems as they are in these namespaces.
func (s *Setup) mountEngine() error {
	// Volumes are passed on from mount namespace to mount namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w; within a container it must not be masked (podman run --security-opt unmask=ALL)", err)
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	// The interfaces in /sys/class/net are those of the network namespace it was mounted
	// in. A container that hides a part of /sys may not mount another, and does without.
	_ = unix.Mount("sysfs", "/sys", "sysfs", flags, "")
	// The root of what is mounted is that of the cgroup namespace, where this process is.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	err := unix.Mount("cgroup2", cgroupDir, "cgroup2", flags, "")
	if err == nil && s.Cgroup {
		err = leaveRoot()
	}
	if err != nil && s.Cgroup {
		return fmt.Errorf("mount %s: %w", cgroupDir, err)
	}
	return nil
}

// leaveRoot moves this process from the root of its cgroup namespace to a cgroup
// below, so that the root's controllers can be enabled.
func leaveRoot() error {
	init := filepath.Join(cgroupDir, "init")
	if err := os.Mkdir(init, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(init, "cgroup.procs"), []byte("0"), 0)
}

// podmanConf is where podman reads more settings, besides whoever's own.
const podmanConf = "/etc/containers/containers.conf.d/10-vswitch.conf"

// tellPodman tells podman, if it is installed, what root of a user namespace can't
// do, which podman would try since it is root.
func (s *Setup) tellPodman() error {
	if _, err := os.Stat("/etc/containers"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var files, processes unix.Rlimit
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_NOFILE, &files), unix.Getrlimit(unix.RLIMIT_NPROC, &processes)); err != nil {
		return err
	}
	var text bytes.Buffer
	text.WriteString("# By vswitch rootless run --engine.\n[containers]\n")
	fmt.Fprintf(&text, "default_ulimits = [\"nofile=%d:%[1]d\", \"nproc=%d:%[2]d\"]\n", int64(files.Max), int64(processes.Max))
	controllers, _ := os.ReadFile(filepath.Join(cgroupDir, "cgroup.controllers"))
	switch {
	case !s.Cgroup:
		text.WriteString("cgroups = \"disabled\"\n")
	case !strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " pids "):
		text.WriteString("pids_limit = 0\n")
	}
	text.WriteString("[network]\nnetwork_config_dir = \"/etc/cni/net.d\"\n") // podman takes the user's in part
	text.WriteString("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n")
	if err := os.MkdirAll(filepath.Dir(podmanConf), 0o755); err != nil {
		return err
	}
	return os.WriteFile(podmanConf, text.Bytes(), 0o644)
}

// hideSystemd removes what tells that systemd runs the machine (sd_booted(3)): it does,
// and takes no orders from here, as engines would have it make their cgroups. It
// stays where /run/systemd is a link, to what is not to be written.
func hideSystemd() { _ = os.RemoveAll("/run/systemd/system") }

// ownRuntimeDir gives the command a runtime directory (XDG base directories) that ends
// with it: in the user's own, engines of root would leave what they don't know is gone.
func ownRuntimeDir() error {
	const dir = "/run/user/0"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Setenv("XDG_RUNTIME_DIR", dir)
}
