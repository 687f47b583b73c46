package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"
)

// packageRoot is a directory as the package's files make it of an empty one, with stubs
// for the programs.
func packageRoot(t *testing.T) string {
	t.Helper()
	var p struct {
		Contents []struct {
			Src, Dst string
		}
		Scripts map[string]string
	}
	if err := yaml.Unmarshal(readFile(t, "package/nfpm.yaml"), &p); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, c := range p.Contents {
		text, mode := []byte("#!/bin/sh\n"), os.FileMode(0o755)
		if !strings.HasPrefix(c.Src, "bin/") {
			text, mode = readFile(t, "../"+c.Src), 0o644
		}
		at := filepath.Join(root, c.Dst)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, text, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range p.Scripts {
		if info, err := os.Stat("../" + s); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s: %v %v", s, info, err)
		}
	}
	return root
}

// TestUnitsAreWhatSystemdTakes has systemd itself read the units, where the package puts
// them and the programs that they name.
func TestUnitsAreWhatSystemdTakes(t *testing.T) {
	root := packageRoot(t)
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze (Debian package systemd)")
	}
	units := filepath.Join(root, "lib/systemd/system")
	for _, name := range []string{"sysinit.target", "basic.target", "shutdown.target", "network-online.target", "multi-user.target", "system.slice", "-.slice"} {
		kind := "[Unit]\nDefaultDependencies=no\n"
		if err := os.WriteFile(filepath.Join(units, name), []byte(kind), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("systemd-analyze", "--root="+root, "--man=no", "verify", "vswitch.service", "vswitch-attend.service").CombinedOutput()
	if err != nil || strings.Contains(string(out), "vswitch") {
		t.Errorf("%v\n%s", err, out)
	}
	// systemd's own measure, 0 to 100: what the daemon is confined to stays so.
	out, err = exec.Command("systemd-analyze", "--root="+root, "security", "--offline=true", "--threshold=25", "--no-pager", "vswitch.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A systemd before 254 says nothing of its store to the daemon, so the unit does.
func TestTheUnitOffersAsManyDescriptorsAsItKeeps(t *testing.T) {
	unit := string(readFile(t, "systemd/vswitch.service"))
	kept := regexp.MustCompile(`(?m)^FileDescriptorStoreMax=(\d+)$`).FindStringSubmatch(unit)
	said := regexp.MustCompile(`(?m)^Environment=FDSTORE=(\d+)$`).FindStringSubmatch(unit)
	if kept == nil || said == nil || kept[1] != said[1] {
		t.Errorf("FileDescriptorStoreMax and FDSTORE are %q and %q, want one number", kept, said)
	}
}

func TestTheConfigurationOfThePackageSaysNothing(t *testing.T) {
	if s := strings.TrimSpace(stripComments(string(readFile(t, "package/config.yaml")))); s != "" {
		t.Errorf("%q", s)
	}
}

// What the units put on the host goes with the package, and the node's state when it
// is purged. The scripts run in a root of their own, without systemd.
func TestWhatARemovedPackageLeaves(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changes the root directory of a process: run as root")
	}
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("%v: needs Debian's busybox-static", err)
	}
	root := t.TempDir()
	const conflist, other, state, socket = "etc/cni/net.d/10-vswitch.conflist", "etc/cni/net.d/20-other.conflist", "var/lib/vswitch/claim.json", "run/vswitch/flows"
	for name, text := range map[string][]byte{
		"bin/busybox": shell, "bin/sh": shell, "bin/rm": shell, conflist: nil, other: nil, state: nil, socket: nil,
		"preremove": readFile(t, "package/preremove.sh"), "postremove": readFile(t, "package/postremove.sh"),
	} {
		at := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, text, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		script, why string
		left        []string
	}{
		{"preremove", "upgrade", []string{conflist, other, state, socket}},
		{"postremove", "upgrade", []string{conflist, other, state, socket}},
		{"preremove", "failed-upgrade", []string{conflist, other, state, socket}},
		{"preremove", "remove", []string{other, state, socket}},
		{"postremove", "remove", []string{other, state, socket}},
		{"postremove", "purge", []string{other}},
	} {
		c := exec.Command("/bin/sh", "/"+step.script, step.why)
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		c.Dir, c.Env = "/", []string{"PATH=/bin"}
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v: %s", step.script, step.why, err, out)
		}
		var left []string
		for _, name := range []string{conflist, other, state, socket} {
			if _, err := os.Stat(filepath.Join(root, name)); err == nil {
				left = append(left, name)
			}
		}
		if !slices.Equal(left, step.left) {
			t.Errorf("after %s %s: %q are left, want %q", step.script, step.why, left, step.left)
		}
	}
}

func stripComments(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
