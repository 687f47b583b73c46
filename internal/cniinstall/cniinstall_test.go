package cniinstall

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	plugin := filepath.Join(dir, "built")
	if err := os.WriteFile(plugin, []byte("program 1"), 0o700); err != nil {
		t.Fatal(err)
	}
	return Config{
		BinDir: filepath.Join(dir, "opt/cni/bin"), ConfDir: filepath.Join(dir, "etc/cni/net.d"),
		File: DefaultFile, Network: DefaultNetwork, Plugin: plugin, Socket: "/run/vswitch/vswitch.sock", HostPorts: true,
	}
}

func install(t *testing.T, c Config) Result {
	t.Helper()
	r, err := Install(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAnEngineThatOpensPortsItselfIsNotAskedForThem(t *testing.T) {
	c := config(t)
	c.HostPorts = false
	text, err := c.Conflist()
	if err != nil || strings.Contains(string(text), "capabilities") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestInstalledIsWhatARuntimeTakes(t *testing.T) {
	c := config(t)
	r := install(t, c)
	if want := []string{c.plugin(), c.conf()}; !slices.Equal(r.Changed, want) || r.Ahead != nil {
		t.Errorf("%+v, want %v written in this order and nothing ahead", r, want)
	}
	for path, mode := range map[string]os.FileMode{c.plugin(): 0o755, c.conf(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, info, err, mode)
		}
	}
	files, err := libcni.ConfFiles(c.ConfDir, []string{".conf", ".conflist"})
	if err != nil || !slices.Equal(files, []string{c.conf()}) {
		t.Fatalf("a runtime finds %v, %v", files, err)
	}
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	// A library that knows cniVersions takes the newest of them.
	if list.Name != "vswitch" || list.CNIVersion != "1.1.0" || len(list.Plugins) != 1 {
		t.Fatalf("%+v", list)
	}
	p := list.Plugins[0].Network
	if p.Type != filepath.Base(c.plugin()) || !p.Capabilities["portMappings"] || !strings.Contains(string(list.Plugins[0].Bytes), c.Socket) {
		t.Errorf("%+v %s", p, list.Plugins[0].Bytes)
	}
	// One that doesn't goes by cniVersion.
	if text, err := c.Conflist(); err != nil || !strings.Contains(string(text), `"cniVersion": "1.0.0"`) {
		t.Errorf("%s %v", text, err)
	}
}

func TestInstallWritesOnlyWhatDiffers(t *testing.T) {
	c := config(t)
	install(t, c)
	if r := install(t, c); r.Changed != nil {
		t.Errorf("written again: %v", r.Changed)
	}
	if err := os.WriteFile(c.Plugin, []byte("program 2"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r := install(t, c); !slices.Equal(r.Changed, []string{c.plugin()}) {
		t.Errorf("a new plugin: written %v", r.Changed)
	}
	if got, err := os.ReadFile(c.plugin()); err != nil || string(got) != "program 2" {
		t.Errorf("%q %v", got, err)
	}
	if err := os.Remove(c.conf()); err != nil {
		t.Fatal(err)
	}
	if r := install(t, c); !slices.Equal(r.Changed, []string{c.conf()}) {
		t.Errorf("configuration removed: written %v", r.Changed)
	}
}

func TestIntact(t *testing.T) {
	c := config(t)
	r := install(t, c)
	if !r.Intact() {
		t.Error("not intact as installed")
	}
	if err := os.Chmod(c.plugin(), 0o700); err != nil {
		t.Fatal(err)
	}
	if r.Intact() {
		t.Error("intact with another mode")
	}
	r = install(t, c)
	if err := os.Remove(c.conf()); err != nil {
		t.Fatal(err)
	}
	if r.Intact() {
		t.Error("intact without configuration")
	}
}

func TestWithoutAPluginNoConfiguration(t *testing.T) {
	c := config(t)
	c.Plugin += "-missing"
	if _, err := Install(c); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(c.conf()); err == nil {
		t.Error("the configuration was written")
	}
	// A directory where the plugin belongs can't be replaced by a file.
	c = config(t)
	if err := os.MkdirAll(c.plugin(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(c); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(c.conf()); err == nil {
		t.Error("the configuration was written")
	}
	if left, _ := filepath.Glob(c.BinDir + "/*.new"); left != nil {
		t.Errorf("left %v", left)
	}
}

func TestConfigurationsAheadAreNamed(t *testing.T) {
	c := config(t)
	if err := os.MkdirAll(c.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00-multus.conf", "10-flannel.conflist", "05-notes.txt", "87-podman.conflist"} {
		if err := os.WriteFile(filepath.Join(c.ConfDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := install(t, c); !slices.Equal(r.Ahead, []string{filepath.Join(c.ConfDir, "10-flannel.conflist")}) {
		t.Errorf("ahead: %v", r.Ahead)
	}
}

func TestRemove(t *testing.T) {
	c := config(t)
	install(t, c)
	got, err := Remove(c)
	if want := []string{c.conf(), c.plugin()}; err != nil || !slices.Equal(got, want) {
		t.Errorf("removed %v, %v; want %v in this order", got, err, want)
	}
	if got, err := Remove(c); err != nil || got != nil {
		t.Errorf("again: %v, %v", got, err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"want an absolute path": func(c *Config) { c.Socket = "v.sock" },
		"file name":             func(c *Config) { c.File = "../10-vswitch.conflist" },
		"such as 10-vswitch":    func(c *Config) { c.File = "10-vswitch.conf" },
		"want a name":           func(c *Config) { c.Network = "" },
	} {
		c := config(t)
		change(&c)
		if _, err := Install(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}
