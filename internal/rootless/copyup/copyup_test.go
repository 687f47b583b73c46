package copyup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stranger is a user of the machine whom the namespaces of these tests don't have.
const stranger = 1

// inNamespace is set in the process of a test that is root of a user namespace.
const inNamespace = "VSWITCH_TEST_COPYUP"

// namespaced runs the calling test again, as root of a user namespace that has but
// this one, with a mount namespace of its own. What prepare makes in dir belongs to
// one whom it doesn't have, as what the machine's root has does otherwise. It returns the directory there, and "" outside.
func namespaced(t *testing.T, prepare func(dir string) error) string {
	if dir := os.Getenv(inNamespace); dir != "" {
		return dir
	}
	if os.Getuid() != 0 {
		t.Skip("files of another user are to be made: run as root")
	}
	dir := t.TempDir()
	if err := prepare(dir); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, stranger, stranger))
	})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), inNamespace+"="+dir)
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: one, GidMappings: one}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	return ""
}

// write makes files, and the directories they lie in.
func write(dir string, files map[string]string) error {
	var err error
	for name, text := range files {
		path := filepath.Join(dir, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
	}
	return err
}

func TestWhatIsCopiedUpCanBeWritten(t *testing.T) {
	large := strings.Repeat("x", smallBytes+1)
	dir := namespaced(t, func(dir string) error {
		err := write(dir, map[string]string{
			"etc/small": "as it was", "etc/large": large, "etc/cni/net.d/lock": "", "etc/secret": "",
			"etc/a/b/c/deep": "", "etc/a/b/c/d/e": "", "etc/private/key": "", "etc/open/file": "",
		})
		many := map[string]string{}
		for i := range crowd + 1 {
			many[fmt.Sprint("etc/crowd/", i)] = ""
		}
		return errors.Join(err, write(dir, many), os.Symlink("../elsewhere", filepath.Join(dir, "etc/link")),
			os.Chmod(filepath.Join(dir, "etc/secret"), 0o600), os.Chmod(filepath.Join(dir, "etc/private"), 0o700),
			os.Chmod(filepath.Join(dir, "etc/open"), 0o777))
	})
	if dir == "" {
		return
	}
	etc := filepath.Join(dir, "etc")
	if err := os.WriteFile(filepath.Join(etc, "new"), nil, 0o644); !errors.Is(err, os.ErrPermission) {
		t.Fatalf("it can be written without: %v", err)
	}
	if err := Dirs([]string{filepath.Join(etc, "missing/one"), etc, filepath.Join(etc, "a/b/c/d"), filepath.Join(etc, "a"), filepath.Join(dir, "absent")}); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(etc, name))
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	for _, name := range []string{"new", "small", "cni/net.d/lock", "cni/net.d/other", "a/b/c/new", "missing/one/file", "open/new", "secret", "a/b/c/d/new"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte("written"), 0o644); err != nil {
			t.Errorf("write %s: %v", name, err)
		} else if got := read(name); got != "written" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, want := range map[string]string{
		"large": large, "crowd/1": "", "a/b/c/deep": "", "a/b/c/d/e": "", ".host/small": "as it was", ".host/cni/net.d/lock": "", ".host/open/new": "written",
	} {
		if got := read(name); got != want {
			t.Errorf("%s: %.40q, want %.40q", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"link": "../elsewhere", "large": ".host/large", "crowd": ".host/crowd", "open": ".host/open",
	} {
		if got, err := os.Readlink(filepath.Join(etc, name)); got != want {
			t.Errorf("%s leads to %q (%v), want %q", name, got, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(etc, "private")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what can't be read is there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was absent is there: %v", err)
	}
}

func TestWhatCanBeWrittenIsProtected(t *testing.T) {
	dir := namespaced(t, func(dir string) error { return write(dir, map[string]string{"open": ""}) })
	if dir == "" {
		return
	}
	dir = t.TempDir() // this one's own
	large := strings.Repeat("x", smallBytes+1)
	if err := write(dir, map[string]string{"large": large, "small": "as it was", "sub/file": ""}); err != nil {
		t.Fatal(err)
	}
	was, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer was.Close()
	if err := Dirs([]string{dir}); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) // or it could not be removed
	for name, want := range map[string]error{"new": nil, "small": nil, "sub/file": nil, "sub/new": nil, "large": unix.EROFS, ".host/small": unix.EROFS} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("written"), 0o644); !errors.Is(err, want) {
			t.Errorf("write %s: %v, want %v", name, err, want)
		}
	}
	elsewhere := t.TempDir()
	if err := was.Put(elsewhere); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(elsewhere, unix.MNT_DETACH)
	for name, want := range map[string]string{"large": large, "small": "as it was", "sub/file": ""} {
		if got, err := os.ReadFile(filepath.Join(elsewhere, name)); err != nil || string(got) != want {
			t.Errorf("%s was changed: %.40q, %v", name, got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was made is seen where it was not: %v", err)
	}
}

func TestATreeIsShownWhereItIsPut(t *testing.T) {
	dir := namespaced(t, func(dir string) error { return write(dir, map[string]string{"from/file": "text", "to/other": ""}) })
	if dir == "" {
		return
	}
	tree, err := Take(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	// Another file system hides where it was.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	if err := errors.Join(os.Mkdir(to, 0o755), tree.Put(to)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(to, "file")); err != nil || string(text) != "text" || !tree.IsDir() {
		t.Errorf("%q, %v", text, err)
	}
}

func TestCheckWantsDirectoriesBelowTheRoot(t *testing.T) {
	for _, bad := range []string{"", "etc", "/", "//", "/.."} {
		if Check([]string{"/etc", bad}) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if err := Check([]string{"/etc", "/var/lib/"}); err != nil {
		t.Error(err)
	}
}
