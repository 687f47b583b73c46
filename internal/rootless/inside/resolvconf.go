package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const resolvConf = "/etc/resolv.conf"

// makeMountsOwn keeps what is mounted here from showing outside.
func makeMountsOwn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// bindResolvConf puts a file with the text given over /etc/resolv.conf, or what it
// is a link to. The file lies in a file system of its own, which nothing else shows.
func bindResolvConf(text string) error {
	target, err := filepath.EvalSymlinks(resolvConf)
	if err != nil {
		return fmt.Errorf("no file to put name servers over: %w; make one, empty if need be: sudo touch %s", err, resolvConf)
	}
	// Some directory, for a moment and for this process alone.
	at := ""
	for _, dir := range []string{"/tmp", "/mnt", "/run", "/var/tmp"} {
		if err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,mode=755"); err == nil {
			at = dir
			break
		}
	}
	if at == "" {
		return fmt.Errorf("mount a file system for %s: %w", resolvConf, err)
	}
	file := filepath.Join(at, "resolv.conf")
	err = os.WriteFile(file, []byte(text), 0o644)
	if err == nil {
		err = unix.Mount(file, target, "", unix.MS_BIND, "")
	}
	err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
	if err != nil {
		return fmt.Errorf("put name servers over %s: %w", target, err)
	}
	return nil
}
