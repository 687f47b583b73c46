// Package cniinstall puts the CNI plugin and its network configuration where a
// container runtime looks for them, and takes them away.
//
// A kubelet calls its node ready once a configuration lies there. So the
// configuration comes last, each file appears as a whole or not at all, and
// whoever calls Install has asked the daemon first whether ADD works.
package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"vswitch/control/statefile"
)

// Names in the directories where runtimes look.
const (
	// DefaultFile sorts behind 00-multus.conf, which takes the next one for the
	// cluster's own network, and ahead of what distributions install (87-podman).
	DefaultFile = "10-vswitch.conflist"
	// DefaultNetwork is the network's name, part of each attachment's key.
	DefaultNetwork = "vswitch"
	pluginName     = "vswitch-cni"
)

// Config says what is installed where. Every string is required.
type Config struct {
	BinDir  string // of plugins
	ConfDir string // of network configurations
	File    string // name of the configuration's file
	Network string // name of the network
	Plugin  string // path of the plugin to install
	Socket  string // of the daemon, as the plugin is to find it
	// HostPorts has the plugin ask the daemon for the ports that containers publish: not
	// where the container engine opens them itself, as an ordinary user's podman does.
	HostPorts bool
}

// Result is what Install did and found.
type Result struct {
	Changed []string // paths written; none: all was there
	// Ahead are other configurations, which a runtime takes before this one.
	Ahead []string

	files map[string]fs.FileInfo
}

// Intact reports whether the files are still those that Install left, by what the
// directory says of them: cheap enough to ask each second.
func (r *Result) Intact() bool {
	for path, was := range r.files {
		is, err := os.Lstat(path)
		if err != nil || !os.SameFile(was, is) || is.Mode() != was.Mode() || is.Size() != was.Size() || !is.ModTime().Equal(was.ModTime()) {
			return false
		}
	}
	return len(r.files) > 0
}

func (c *Config) plugin() string { return filepath.Join(c.BinDir, pluginName) }
func (c *Config) conf() string   { return filepath.Join(c.ConfDir, c.File) }

// Validate says what is wrong with a configuration.
func (c *Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Socket):
		return fmt.Errorf("socket %q: want an absolute path: the plugin runs anywhere", c.Socket)
	case filepath.Base(c.File) != c.File || filepath.Ext(c.File) != ".conflist":
		return fmt.Errorf("file name %q: want one such as %s, which runtimes take for a list of plugins", c.File, DefaultFile)
	case c.Network == "":
		return errors.New("network: want a name")
	}
	return nil
}

// Conflist is the network configuration (CNI 1.1.0, "Network configuration format").
// Its cniVersion is what runtimes go by that don't know cniVersions, Debian 12's
// containerd 1.6 and podman 4.3 among them.
func (c *Config) Conflist() ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket"`
		Capabilities map[string]bool `json:"capabilities,omitempty"`
	}
	var capabilities map[string]bool
	if c.HostPorts {
		capabilities = map[string]bool{"portMappings": true}
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{
		CNIVersion: "1.0.0", CNIVersions: []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, Name: c.Network,
		Plugins: []plugin{{Type: pluginName, Socket: c.Socket, Capabilities: capabilities}},
	}, "", "  ")
	return append(text, '\n'), err
}

// Install writes what is missing or different, the plugin first.
func Install(c Config) (Result, error) {
	r := Result{files: map[string]fs.FileInfo{}}
	if err := c.Validate(); err != nil {
		return r, err
	}
	program, err := os.Open(c.Plugin)
	if err != nil {
		return r, fmt.Errorf("plugin: %w", err)
	}
	defer program.Close()
	conflist, err := c.Conflist()
	if err != nil {
		return r, err
	}
	for _, f := range []struct {
		path    string
		content io.ReadSeeker
		mode    fs.FileMode
	}{
		{c.plugin(), program, 0o755},
		{c.conf(), bytes.NewReader(conflist), 0o600},
	} {
		changed, err := put(f.path, f.content, f.mode)
		if err != nil {
			return r, err
		}
		if changed {
			r.Changed = append(r.Changed, f.path)
		}
		if r.files[f.path], err = os.Lstat(f.path); err != nil {
			return r, err
		}
	}
	r.Ahead, err = ahead(c.ConfDir, c.File)
	return r, err
}

// put makes a file of that content and mode, and reports whether it was not one.
// Runtimes load their configuration again at each change, so what is right is left.
func put(path string, content io.ReadSeeker, mode fs.FileMode) (changed bool, err error) {
	if info, err := os.Lstat(path); err == nil && info.Mode() == mode {
		same, err := holds(path, content)
		if err != nil || same {
			return false, err
		}
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, statefile.Replace(path, mode, func(out *os.File) error {
		_, err := io.Copy(out, content)
		return err
	})
}

// holds reports whether a file's content is that. It reads both piece by piece: a
// plugin has some ten megabytes.
func holds(path string, content io.Reader) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var have, want [32 << 10]byte
	for {
		n, err := io.ReadFull(f, have[:])
		m, wantErr := io.ReadFull(content, want[:])
		if !bytes.Equal(have[:n], want[:m]) {
			return false, nil
		}
		for _, e := range []error{err, wantErr} {
			if e != nil && e != io.EOF && e != io.ErrUnexpectedEOF {
				return false, e
			}
		}
		if err != nil { // both have ended
			return true, nil
		}
	}
}

// metaPlugins are configurations that lead to the next one by design.
var metaPlugins = []string{"00-multus.conf", "00-multus.conflist"}

// ahead lists what a runtime finds before file: it takes the first by name.
func ahead(dir, file string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	var before []string
	for _, e := range entries {
		switch ext := filepath.Ext(e.Name()); {
		case e.Name() >= file:
			return before, nil
		case ext != ".conf" && ext != ".conflist" && ext != ".json":
		case !slices.Contains(metaPlugins, e.Name()):
			before = append(before, filepath.Join(dir, e.Name()))
		}
	}
	return before, nil
}

// Remove takes away what Install put there, the configuration first, so that no
// runtime is told of a plugin that has gone. That nothing is there is no error.
func Remove(c Config) (removed []string, err error) {
	for _, path := range []string{c.conf(), c.plugin()} {
		switch err := os.Remove(path); {
		case err == nil:
			removed = append(removed, path)
		case !errors.Is(err, fs.ErrNotExist):
			return removed, err
		}
	}
	return removed, nil
}
