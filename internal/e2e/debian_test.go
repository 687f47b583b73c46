package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"vswitch/internal/lab/labtest"
)

// debianPackage is the package, of a version. In the short form it is what dpkg-deb makes
// of nfpm's configuration and the built programs, since nfpm takes a minute of CPU where
// it was never built; `make test-long` runs nfpm.
func debianPackage(t *testing.T, version string) string {
	t.Helper()
	tree := filepath.Dir(labtest.BinDir(t))
	dir := t.TempDir()
	if labtest.Long() {
		mustRun(t, exec.Command("make", "-C", tree, "deb", "DEB_DIR="+dir, "PACKAGE_VERSION="+version))
		made, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(made) != 1 {
			t.Fatalf("make deb made %q, %v", made, err)
		}
		return made[0]
	}
	text, err := os.ReadFile(filepath.Join(tree, "deploy/package/nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Name, Maintainer, Description string
		Contents                      []struct {
			Src, Dst, Type string
			Info           struct{ Mode os.FileMode } `json:"file_info"`
		}
		Scripts map[string]string
	}
	if err := yaml.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	put := func(src, dst string, mode os.FileMode) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(tree, src))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(root, dst), b, mode)
	}
	var conffiles strings.Builder
	for _, c := range p.Contents {
		put(c.Src, c.Dst, c.Info.Mode)
		if strings.HasPrefix(c.Type, "config") {
			fmt.Fprintln(&conffiles, c.Dst)
		}
	}
	for script, name := range map[string]string{"postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"} {
		put(p.Scripts[script], "DEBIAN/"+name, 0o755)
	}
	writeFile(t, filepath.Join(root, "DEBIAN/conffiles"), []byte(conffiles.String()), 0o644)
	title, _, _ := strings.Cut(p.Description, "\n")
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: %s\nDescription: %s\n", p.Name, version, runtime.GOARCH, p.Maintainer, title)
	writeFile(t, filepath.Join(root, "DEBIAN/control"), []byte(control), 0o644)
	made := filepath.Join(dir, "vswitch.deb")
	mustRun(t, exec.Command("dpkg-deb", "--root-owner-group", "-Znone", "--build", root, made))
	return made
}

func writeFile(t *testing.T, path string, b []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatal(err)
	}
}

func mustRun(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", c.Args, err, out)
	}
}
