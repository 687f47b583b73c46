package e2e

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

var capturing = regexp.MustCompile(`capturing`)

// startCapture runs `vswitch capture` on a node until it is in effect.
func startCapture(t *testing.T, n *lab.Node, args ...string) *lab.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := n.Start(lab.Command{Name: "vswitch capture", Path: filepath.Join(labtest.BinDir(t), "vswitch"), Args: append([]string{"capture", "--socket", n.Socket()}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	if _, err := p.WaitLog(ctx, capturing); err != nil {
		t.Fatal(err)
	}
	return p
}

// A capture of a TCP stream with offloads on holds what tcpdump finds whole: every
// checksum right, super-frames included, on both sides of the switch.
func TestCapture(t *testing.T) {
	need(t, "tcpdump", "iperf3", "ping")
	c := newCluster(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	for name, args := range map[string][]string{
		"pod":    {"--pod", "default/a1", "tcp", "port", "5201"},
		"tunnel": {"--tunnel", "tcp", "port", "5201"},
	} {
		file := filepath.Join(dir, name+".pcapng")
		p := startCapture(t, c.nodes[0], append([]string{"-w", file}, args...)...)
		iperf(t, c.a1.Namespace, c.b1.Namespace, c.b1.IP(4), "-n", "8M")
		if err := p.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(ctx); err != nil {
			t.Fatalf("capture: %v\n%s", err, p.Log())
		}
		out, err := c.nodes[0].Exec(ctx, lab.Command{Path: "tcpdump", Args: []string{"-nn", "-v", "-r", file}})
		if err != nil {
			t.Fatalf("tcpdump: %v\n%s", err, out)
		}
		text := string(out)
		if bad := strings.Count(text, "incorrect"); bad > 0 || strings.Count(text, "(correct)") < 10 {
			t.Errorf("%s: %d of %d checksums are wrong", name, bad, strings.Count(text, "cksum"))
		}
		if !regexp.MustCompile(`length [0-9]{5}\n`).MatchString(text) {
			t.Errorf("%s: no super-frame in the capture", name)
		}
	}

	// What goes no further shows with the reason, on a line of its own.
	p := startCapture(t, c.nodes[0], "--drops", "--pod", "default/a1", "-c", "1", "udp")
	if _, err := c.a1.Exec(ctx, lab.Command{Path: "bash", Args: []string{"-c", "echo x > /dev/udp/240.0.0.1/9"}}); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if want := "> 240.0.0.1:9: UDP, length 2 [dropped: martian-target]"; !strings.Contains(p.Log(), want) {
		t.Errorf("capture --drops printed\n%s\nwant %q in it", p.Log(), want)
	}
}
