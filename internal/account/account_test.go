package account

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestRootOfAUserNamespaceIsAnOrdinaryUser(t *testing.T) {
	for _, tt := range []struct {
		name        string
		euid        int
		uidMap      string
		uid         int
		root, inner bool
	}{
		{"root", 0, "         0          0 4294967295\n", 0, true, false},
		{"a user", 1000, "         0          0 4294967295\n", 1000, false, false},
		{"root of a user's namespace", 0, "         0       1000          1\n", 1000, false, true},
		{"the same with subordinate uids", 0, "0 1000 1\n1 100000 65536\n", 1000, false, true},
		{"a user in such a namespace", 5, "0 1000 1\n1 100000 65536\n", 100004, false, false},
		{"root of a container with uids of its own", 0, "0 100000 65536\n", 100000, false, true},
		{"a kernel without user namespaces", 0, "", 0, true, false},
		{"what can't be read", 7, "x y z\n1 2\n", 7, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uid, root, inner := identify(tt.euid, tt.uidMap)
			if uid != tt.uid || root != tt.root || inner != tt.inner {
				t.Errorf("uid %d, root %v, inner %v; want %d, %v, %v", uid, root, inner, tt.uid, tt.root, tt.inner)
			}
		})
	}
}

func TestDirectories(t *testing.T) {
	user := Account{UID: 1000}
	inner := Account{UID: 1000, inner: true}
	for _, tt := range []struct {
		name     string
		account  Account
		env      map[string]string
		writable []string
		runtime  string
		state    string
		said     []string // of the error where a directory is empty
	}{
		{name: "root", account: Account{Root: true}, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/root/state"},
			writable: []string{"/run/user/0", "/var/lib"}, runtime: "/run", state: "/var/lib"},
		{name: "root of a system that can't be written", account: Account{Root: true}, writable: []string{"/home/u"}, runtime: "/run", state: "/home/u/.local/state"},
		{name: "a user", account: user, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"},
			writable: []string{"/run/user/1000", "/home/u"}, runtime: "/run/user/1000", state: "/home/u/.local/state"},
		{name: "a user who says where", account: user, env: map[string]string{"XDG_RUNTIME_DIR": "/tmp/run", "XDG_STATE_HOME": "/srv/state"},
			writable: []string{"/tmp/run", "/run/user/1000"}, runtime: "/tmp/run", state: "/srv/state"},
		{name: "a user whose session's variable got lost", account: user, writable: []string{"/run/user/1000", "/home/u", "/run", "/var/lib"},
			runtime: "/run/user/1000", state: "/home/u/.local/state"},
		{name: "a user with a variable that is stale", account: user, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "state"},
			writable: []string{"/run/user/1000", "/home/u"}, runtime: "/run/user/1000", state: "/home/u/.local/state"},
		{name: "a user without session and home", account: user, writable: []string{"/run", "/var/lib"},
			said: []string{"$XDG_RUNTIME_DIR is not set", "/run/user/1000", "$XDG_STATE_HOME is not set", "/home/u"}},
		{name: "a user whose variable names nothing", account: user, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"},
			said: []string{"/run/user/7 is not a directory", "/run/user/1000", "/home/u"}},
		{name: "root of a user's namespace", account: inner, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"},
			writable: []string{"/run/user/1000", "/run", "/home/u"}, runtime: "/run/user/1000", state: "/home/u/.local/state"},
		{name: "root of a container", account: inner, writable: []string{"/run", "/var/lib", "/home/u"}, runtime: "/run", state: "/var/lib"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := tt.account
			a.env = func(k string) string { return tt.env[k] }
			a.writable = func(dir string) bool { return slices.Contains(tt.writable, dir) }
			a.home = func() (string, error) { return "/home/u", nil }
			runtime, err1 := a.RuntimeDir()
			state, err2 := a.StateDir()
			if runtime != tt.runtime || state != tt.state || (err1 != nil) != (tt.runtime == "") || (err2 != nil) != (tt.state == "") {
				t.Errorf("%q (%v), %q (%v); want %q, %q", runtime, err1, state, err2, tt.runtime, tt.state)
			}
			for _, said := range tt.said {
				if err := errors.Join(err1, err2); err == nil || !strings.Contains(err.Error(), said) {
					t.Errorf("the error does not say %q: %v", said, err)
				}
			}
		})
	}
}

func TestWhereAContainerEngineLooks(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		account                Account
		config                 string // $XDG_CONFIG_HOME
		writable               []string
		plugins, configuration string
	}{
		{"root", Account{Root: true}, "/root/config", []string{"/etc"}, "/opt/cni/bin", "/etc/cni/net.d"},
		{"a user", Account{UID: 1000}, "", nil, "/home/u/.local/lib/cni", "/home/u/.config/cni/net.d"},
		{"a user who says where", Account{UID: 1000}, "/srv/config", nil, "/home/u/.local/lib/cni", "/srv/config/cni/net.d"},
		{"a user who says nonsense", Account{UID: 1000}, "config", nil, "/home/u/.local/lib/cni", "/home/u/.config/cni/net.d"},
		{"root of a user's namespace", Account{UID: 1000, inner: true}, "", nil, "/home/u/.local/lib/cni", "/home/u/.config/cni/net.d"},
		{"root of a container", Account{UID: 1000, inner: true}, "", []string{"/etc"}, "/opt/cni/bin", "/etc/cni/net.d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := tt.account
			a.env = func(k string) string { return map[string]string{"XDG_CONFIG_HOME": tt.config}[k] }
			a.writable = func(dir string) bool { return slices.Contains(tt.writable, dir) }
			a.home = func() (string, error) { return "/home/u", nil }
			if plugins, configuration := a.CNIDirs(); plugins != tt.plugins || configuration != tt.configuration {
				t.Errorf("%q, %q; want %q, %q", plugins, configuration, tt.plugins, tt.configuration)
			}
		})
	}
}

func TestNoHome(t *testing.T) {
	a := Account{UID: 1000, env: func(string) string { return "" }, writable: func(string) bool { return false },
		home: func() (string, error) { return "", errors.New("$HOME is not defined") }}
	if _, err := a.StateDir(); err == nil || !strings.Contains(err.Error(), "$HOME is not defined") {
		t.Errorf("got %v", err)
	}
	if plugins, configuration := a.CNIDirs(); plugins != "/opt/cni/bin" || configuration != "/etc/cni/net.d" {
		t.Errorf("%q, %q: want the system's", plugins, configuration)
	}
}

func TestOwnIsThisProcess(t *testing.T) {
	a := Own()
	if a.Root && os.Geteuid() != 0 {
		t.Errorf("%+v of uid %d", a, os.Geteuid())
	}
	if _, err := a.StateDir(); a.Root && err != nil {
		t.Error(err)
	}
}
