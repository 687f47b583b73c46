package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vswitch/internal/lab"
)

// Case 53: a machine reboots. Namespaces, TAPs and what lay in memory are gone, nobody
// called DEL, the kernel has another boot id; the state directory is as it was. No
// lease and no record of a pod from before is left, its service has no endpoint there,
// and pods that are made again are reached.
func TestReboot(t *testing.T) {
	need(t, "ping", "unshare")
	c := newCluster(t)
	a, b := c.nodes[0], c.nodes[1]
	web := c.pod(1, "web", map[string]string{"app": "web"})
	serveName(t, web, 8080)
	c.apply(webService)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	endpoints := func() (addrs []string) {
		t.Helper()
		var rows []struct {
			Name      string
			Endpoints []struct{ Addresses []string }
		}
		get(t, a, "endpoints", &rows)
		for _, r := range rows {
			for _, e := range r.Endpoints {
				if r.Name == "web" {
					addrs = append(addrs, e.Addresses...)
				}
			}
		}
		return addrs
	}
	c.eventually("the service has its endpoint", func() error {
		if e := strings.Join(endpoints(), " "); !strings.Contains(e, web.IPv4.String()) {
			return errors.New(e)
		}
		return nil
	})

	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", b.Daemon().Pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(cmdline), "--runtime-dir\x00")
	memory, _, _ := strings.Cut(rest, "\x00")
	if memory == "" {
		t.Fatalf("no --runtime-dir among %q", cmdline)
	}
	b.Daemon().Kill()
	for _, p := range []*lab.Pod{c.b1, c.b2, web} {
		if err := p.Namespace.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(memory); err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(boot, []byte("11111111-2222-3333-4444-555555555555\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.StartDaemon(ctx, lab.RunConfig{
		Store: "etcd=" + a.StoreURL(), Args: []string{"--insecure"},
		Wrapper: []string{"unshare", "--mount", "sh", "-ec", fmt.Sprintf(`mount --bind %s /proc/sys/kernel/random/boot_id; exec "$@"`, boot), "sh"},
	}); err != nil {
		t.Fatal(err)
	}
	c.eventually("pods of before are known no more", func() error {
		for _, n := range c.nodes {
			var pods []struct{ Name, Node string }
			get(t, n, "pods", &pods)
			for _, p := range pods {
				if p.Node == "b" {
					return fmt.Errorf("node %s knows %s", n.Host, p.Name)
				}
			}
		}
		if e := endpoints(); len(e) > 0 {
			return fmt.Errorf("the service has the endpoints %v", e)
		}
		return nil
	})

	again := c.pod(1, "web", map[string]string{"app": "web"})
	c.b1 = c.pod(1, "b1", nil)
	serveName(t, again, 8080)
	c.eventually("leases are those of two pods, of this boot", func() error {
		text, err := os.ReadFile(filepath.Join(b.StateDir(), "leases.json"))
		if err != nil {
			return err
		}
		var leases struct {
			Data struct {
				BootID string
				Leases map[string]int
			}
		}
		if err := json.Unmarshal(text, &leases); err != nil {
			return err
		}
		if len(leases.Data.Leases) != 2 || !strings.HasPrefix(leases.Data.BootID, "11111111") {
			return fmt.Errorf("they are %+v", leases.Data)
		}
		return nil
	})
	c.waitJoined()
	svc := c.service("web")
	c.eventually("the service answers again", func() error {
		for _, family := range []int{4, 6} {
			if err := sawAll(c.a1.Namespace, "tcp", netip.AddrPortFrom(svc.ip(family), 80), "web"); err != nil {
				return err
			}
		}
		return nil
	})
}
