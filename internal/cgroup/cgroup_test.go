package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWhereVersion2IsMounted(t *testing.T) {
	for _, tt := range []struct{ name, mounts, at, root string }{
		{"alone", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup", "/"},
		{
			"beside version 1",
			"25 23 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n26 23 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"/sys/fs/cgroup/unified", "/",
		},
		{"a container's", "30 23 0:26 /pod/one /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "/sys/fs/cgroup", "/pod/one"},
		{"nowhere", "25 23 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n1 2\n", "", ""},
	} {
		at, root, err := parseMount(strings.NewReader(tt.mounts))
		if at != tt.at || root != tt.root || (err == nil) != (tt.at != "") {
			t.Errorf("%s: %q %q %v, want %q %q", tt.name, at, root, err, tt.at, tt.root)
		}
	}
}

// divider is set in a process that is alone in a cgroup, which it divides.
const divider = "VSWITCH_TEST_CGROUP"

func TestACommandHasACgroupOfItsOwn(t *testing.T) {
	if os.Getenv(divider) != "" {
		divide(t)
		return
	}
	here, err := Find()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(here, fmt.Sprintf("vswitch-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	defer func() {
		if err := RemoveTree(dir); err != nil {
			t.Error(err)
		}
	}()
	c := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, dir, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), divider+"=1")
	if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func divide(t *testing.T) {
	was, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	controllers := words(filepath.Join(was, "cgroup.controllers"))
	o, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if at, err := Find(); err != nil || at != o.outside() {
		t.Errorf("this process is in %s (%v), want %s", at, err, o.outside())
	}
	if got := words(filepath.Join(o.inside(), "cgroup.controllers")); len(got) != len(controllers) {
		t.Errorf("controllers inside are %v, want %v", got, controllers)
	}
	c := exec.Command("cat")
	end, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Put(c.Process.Pid); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Process.Pid)); err != nil || !strings.Contains(string(text), "/inside\n") {
		t.Errorf("the command is in %q, %v", text, err)
	}
	if err := os.Mkdir(filepath.Join(o.inside(), "container"), 0o755); err != nil {
		t.Error(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Remove(over); err == nil {
		t.Error("it is removed with the command in it")
	}
	end.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := o.Remove(ctx); err != nil {
		t.Error(err)
	}
	if at, err := Find(); err != nil || at != was {
		t.Errorf("this process is in %s (%v), want %s", at, err, was)
	}
	if _, err := os.Stat(o.top); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", o.top, err)
	}
}
