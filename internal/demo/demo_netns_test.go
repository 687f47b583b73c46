package demo_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vswitch/internal/lab/labtest"
	"vswitch/internal/userns"
)

var lastLine = regexp.MustCompile(`\ndemo: (\d+) passed, 0 failed\n$`)

// wanted is one row of each path of the design, by its first words.
var wanted = []string{
	"ok    container to container     IPv6    tcp",
	"ok    pod to pod, same node      IPv6    ping",
	"ok    pod to pod, across nodes   IPv6    udp",
	"ok    pod to ClusterIP           IPv6    udp",
	"ok    pod to service name        IPv6    tcp",
	"ok    outside to LoadBalancer    IPv4    udp",
	"ok    outside to NodePort        IPv6    tcp",
	"ok    pod to outside             IPv6    ping",
	"ok    NodePort goes and comes            tcp",
}

func check(t *testing.T, out string, err error) {
	t.Helper()
	if err != nil || !lastLine.MatchString(out) {
		t.Errorf("demo: %v\n%s", err, out)
	}
	for _, w := range wanted {
		if !strings.Contains(out, w) {
			t.Errorf("no row %q", w)
		}
	}
}

func TestDemoPassesAsRoot(t *testing.T) {
	labtest.NeedRoot(t)
	out, err := exec.Command(filepath.Join(labtest.BinDir(t), "vswitch-demo")).CombinedOutput()
	check(t, string(out), err)
}

func TestDemoPassesAsAnOrdinaryUser(t *testing.T) {
	out, err := asUser(t).CombinedOutput()
	check(t, string(out), err)
}

// ordinaryUser owns nothing on this machine.
const ordinaryUser = 65534

// asUser is the demo as an ordinary user runs it who may open the TUN device.
func asUser(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	labtest.NeedRoot(t) // to become one, and to open the TUN device to it
	if _, err := os.Stat(userns.TunDevice); err != nil {
		t.Skipf("no TUN device on this machine: %v", err)
	}
	bin := labtest.BinDir(t)
	dir, err := os.MkdirTemp("", "vsdemo") // not t.TempDir: others can't read below that
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tun := filepath.Join(dir, "tun")
	if err := errors.Join(os.Chmod(dir, 0o755), syscall.Mknod(tun, syscall.S_IFCHR, 10<<8|200)); err != nil {
		t.Skipf("device nodes are forbidden here (a user namespace, a container): %v", err)
	}
	if err := os.Chmod(tun, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vswitch", "vswitch-cni", "vswitch-demo"} {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`mount --bind "$0/tun" /dev/net/tun && cd / &&
exec setpriv --reuid=%[1]d --regid=%[1]d --clear-groups --bounding-set=-all env HOME=/ TMPDIR=/tmp "$0/vswitch-demo" "$@"`, ordinaryUser)
	return exec.Command("unshare", append([]string{"-m", "sh", "-c", script, dir}, args...)...)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, 0o755))
}
