// Package account says whose a process is, and where on the machine that user's
// sockets and state lie by default.
//
// Root of the machine has the system's directories; everybody else has their own, by
// the XDG base directory specification. Root of a user namespace is uid 0 and yet an
// ordinary user: the machine's directories, low ports and settings are not its own.
// The package makes nothing and needs nothing of ours: the daemon, its clients and
// the plugin all find each other by it.
package account

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Account is a user of the machine.
type Account struct {
	// UID as the machine knows it, or the next namespace outwards where user
	// namespaces are nested.
	UID int
	// Root: of the machine, with its directories and default ports.
	Root bool
	// inner: uid 0 of a user namespace.
	inner bool

	env      func(string) string
	writable func(dir string) bool // it is a directory, and this process can make files there
	home     func() (string, error)
}

// Own is the account that this process runs as.
func Own() Account {
	a := Account{UID: os.Geteuid(), env: os.Getenv, writable: writable, home: os.UserHomeDir}
	// Where there is no such file the kernel has no user namespaces.
	text, _ := os.ReadFile("/proc/self/uid_map")
	a.UID, a.Root, a.inner = identify(a.UID, string(text))
	return a
}

func writable(dir string) bool { return unix.Access(dir, unix.W_OK|unix.X_OK) == nil }

// identify reads who an effective uid is by the map of its user namespace, lines of
// inner uid, outer uid and count (user_namespaces(7)).
func identify(euid int, uidMap string) (uid int, root, inner bool) {
	const all = 1<<32 - 1 // every uid but the one that means none
	for line := range strings.Lines(uidMap) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		in, err1 := strconv.Atoi(f[0])
		out, err2 := strconv.Atoi(f[1])
		n, err3 := strconv.Atoi(f[2])
		if errors.Join(err1, err2, err3) != nil || euid < in || euid-in >= n {
			continue
		}
		if in == 0 && out == 0 && n == all {
			break
		}
		return out + euid - in, false, euid == 0
	}
	return euid, euid == 0, false
}

// RuntimeDir is where the user's sockets lie, each program's in a directory of its
// own: /run, or what a login session calls $XDG_RUNTIME_DIR.
func (a Account) RuntimeDir() (string, error) {
	if a.Root {
		return "/run", nil
	}
	session := filepath.Join("/run/user", strconv.Itoa(a.UID))
	given := a.env("XDG_RUNTIME_DIR")
	for _, dir := range []string{given, session} {
		if filepath.IsAbs(dir) && a.writable(dir) {
			return dir, nil
		}
	}
	if a.inner && a.writable("/run") { // a container's own
		return "/run", nil
	}
	said := "is not set"
	if given != "" {
		said = given + " is not a directory that this user can write"
	}
	return "", fmt.Errorf("$XDG_RUNTIME_DIR %s, nor is there %s: user %d has no login session", said, session, a.UID)
}

// StateDir is where the user's programs keep what must survive a restart, each in a
// directory of its own, which need not exist yet.
func (a Account) StateDir() (string, error) {
	const system = "/var/lib"
	if a.Root && a.writable(system) {
		return system, nil
	}
	if dir := a.env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if a.inner && a.writable(system) {
		return system, nil
	}
	home, err := a.home()
	if err != nil {
		return "", fmt.Errorf("$XDG_STATE_HOME is not set, and user %d has no home directory: %w", a.UID, err)
	}
	if !a.writable(home) {
		return "", fmt.Errorf("$XDG_STATE_HOME is not set, and the home directory of user %d, %s, is none that it can write", a.UID, home)
	}
	return filepath.Join(home, ".local", "state"), nil
}

// CNIDirs are where this user's container engine finds CNI plugins and network
// configurations: the system's, or for an ordinary user podman's directory of
// configurations, and one of plugins that podman is to be told (cni_plugin_dirs in
// containers.conf(5)).
func (a Account) CNIDirs() (plugins, configurations string) {
	const systemPlugins, etc = "/opt/cni/bin", "/etc"
	if !a.Root && (!a.inner || !a.writable(etc)) {
		if home, err := a.home(); err == nil {
			config := filepath.Join(home, ".config")
			if dir := a.env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
				config = dir
			}
			return filepath.Join(home, ".local/lib/cni"), filepath.Join(config, "cni/net.d")
		}
	}
	return systemPlugins, filepath.Join(etc, "cni/net.d")
}
