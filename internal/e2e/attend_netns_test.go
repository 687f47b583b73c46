package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// What the daemon has no privilege for is done once it is ready, not before, and again
// when it is undone: by its restart, or by somebody who removes the files.
func TestAttend(t *testing.T) {
	need(t, "ping", "ip", "unshare")
	c := newNodes(t, lab.Config{})
	a, dir := c.nodes[0], t.TempDir()
	conf, plugin := filepath.Join(dir, "net.d/10-vswitch.conflist"), filepath.Join(dir, "bin/vswitch-cni")
	program := filepath.Join(labtest.BinDir(t), "vswitch")
	files := []string{"--bin-dir", filepath.Dir(plugin), "--conf-dir", filepath.Dir(conf)}
	there := func(paths ...string) func() error {
		return func() error {
			for _, path := range paths {
				if _, err := os.Stat(path); err != nil {
					return err
				}
			}
			return nil
		}
	}

	args := append([]string{"attend", "--socket", a.Socket(), "--netns", a.Path}, files...)
	p, err := a.Start(lab.Command{Name: "attend", Path: program, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	install := append([]string{"install-cni", "--wait", "1s"}, files...)
	if out, err := a.Vswitch(t.Context(), "", install...); err == nil || !strings.Contains(err.Error()+string(out), "nothing installed") {
		t.Errorf("without a daemon: %v %s", err, out)
	}
	if out, err := a.Vswitch(t.Context(), "", "ready"); err == nil {
		t.Errorf("ready without a daemon: %s", out)
	}
	if there(conf)() == nil {
		t.Error("the configuration is there before the daemon is")
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.StartDaemon(ctx, lab.RunConfig{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the plugin is installed", there(conf, plugin))
	if out, err := a.Vswitch(ctx, "", "ready", "--own"); err != nil {
		t.Errorf("ready: %v %s", err, out)
	}
	// As from another container: its daemon is not this one.
	elsewhere := lab.Command{Path: "unshare", Args: []string{"--pid", "--fork", program, "ready", "--own", "--socket", a.Socket()}}
	if out, err := a.Exec(ctx, elsewhere); err == nil || !strings.Contains(err.Error()+string(out), "another container's") {
		t.Errorf("ready from another PID namespace: %v %s", err, out)
	}
	a1, a2 := c.pod(0, "a1", nil), c.pod(0, "a2", nil)
	reached := func() error {
		if err := pingFrom(a.Namespace, a1.IP(4)); err != nil {
			return err
		}
		return ping(a1, a2.IP(6), 1)
	}
	c.eventually("the host reaches a pod", reached)

	if err := a.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.RestartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.eventually("pods and host are connected again", reached)
	t.Logf("pods and host connected %v after the daemon was ready", time.Since(began).Round(time.Millisecond))

	for _, path := range []string{conf, plugin} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		c.eventually("what was removed is there again", there(path))
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := reached(); err != nil {
		t.Errorf("its end undid something: %v", err)
	}
	out, err := a.Exec(ctx, lab.Command{Path: program, Args: append([]string{"uninstall-cni"}, files...)})
	if err != nil || there(conf)() == nil || there(plugin)() == nil {
		t.Errorf("uninstall: %v %s", err, out)
	}
	hostCommand(t, a, "detach")
}
