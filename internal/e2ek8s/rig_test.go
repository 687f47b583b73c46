package e2ek8s

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
	"vswitch/internal/lab/cluster"
	"vswitch/internal/lab/labtest"
)

// patience bounds every wait in these tests; a quiet machine needs a tenth of it.
const patience = 90 * time.Second

// rig is a cluster with vswitch on its nodes.
type rig struct {
	*cluster.Cluster
	nodes []*cluster.Node
}

// newRig starts a control plane, without nodes, and gives it what deploy/ makes. The
// DaemonSet's image is nowhere: the tests run the daemons themselves, with its rights.
func newRig(t *testing.T) *rig {
	t.Helper()
	bin := labtest.BinDir(t)
	l := labtest.New(t, lab.Config{BinDir: bin})
	keepLogs(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := cluster.Start(ctx, l, cluster.Config{Dir: filepath.Join(bin, "k8s"), PodDir: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r := &rig{Cluster: c}
	deploy, err := filepath.Abs(filepath.Join("..", "..", "deploy"))
	if err != nil {
		t.Fatal(err)
	}
	r.kubectl(t, "apply", "-k", deploy)
	return r
}

// keepLogs leaves the logs of a failed test in out/e2e-k8s.
func keepLogs(t *testing.T, l *lab.Lab) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		to, err := filepath.Abs(filepath.Join("..", "..", "out", "e2e-k8s", t.Name()))
		if err == nil {
			err = os.MkdirAll(to, 0o755)
		}
		if err != nil {
			t.Error(err)
			return
		}
		filepath.WalkDir(l.Dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".log") {
				b, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(filepath.Join(to, d.Name()), b, 0o644)
				}
				if err != nil {
					t.Error(err)
				}
			}
			return nil
		})
		t.Logf("logs are in %s", to)
	})
}

// eventually polls until f succeeds, or fails the test with its last error.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the condition
	}
}

func (r *rig) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := r.Kubectl(ctx, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// apply gives YAML to kubectl, for a namespace.
func (r *rig) apply(t *testing.T, namespace, yaml string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := r.Kubectl(ctx, yaml, "apply", "-n", namespace, "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// namespace makes a namespace that is deleted after the test, and waits until pods
// can be made in it.
func (r *rig) namespace(t *testing.T, name string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := r.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		for ctx.Err() == nil {
			if _, err := r.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
				return
			}
			time.Sleep(50 * time.Millisecond) // between two looks at the condition
		}
		t.Errorf("namespace %s is not gone %v after it was deleted", name, patience)
	})
	eventually(t, "the namespace's service account", func() error {
		_, err := r.Client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return name
}

// pods waits until just n pods with the label app are there and ready, none
// leaving, and returns them by name.
func (r *rig) pods(t *testing.T, namespace, app string, n int) []*corev1.Pod {
	t.Helper()
	var ready []*corev1.Pod
	eventually(t, fmt.Sprintf("%d pods of %s", n, app), func() error {
		list, err := r.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		ready = nil
		for i := range list.Items {
			if podReady(&list.Items[i]) {
				ready = append(ready, &list.Items[i])
			}
		}
		if len(ready) != n || len(list.Items) != n {
			return fmt.Errorf("%d are ready of %d", len(ready), len(list.Items))
		}
		return nil
	})
	slices.SortFunc(ready, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return ready
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// on is the pod among these that runs on a node.
func on(t *testing.T, pods []*corev1.Pod, node string) *corev1.Pod {
	t.Helper()
	for _, p := range pods {
		if p.Spec.NodeName == node {
			return p
		}
	}
	t.Fatalf("no pod of %v is on %s", names(pods), node)
	return nil
}

func names(pods []*corev1.Pod) (all []string) {
	for _, p := range pods {
		all = append(all, p.Name)
	}
	return all
}

// ip is a pod's address of a family.
func ip(t *testing.T, p *corev1.Pod, family int) netip.Addr {
	t.Helper()
	for _, a := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(a.IP); err == nil && addr.Is4() == (family == 4) {
			return addr
		}
	}
	t.Fatalf("pod %s has no IPv%d address: %v", p.Name, family, p.Status.PodIPs)
	return netip.Addr{}
}

// hello is where a pod of a deployment answers.
func hello(t *testing.T, p *corev1.Pod, family int) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(ip(t, p, family), 8080)
}

func (r *rig) service(t *testing.T, namespace, name string) *corev1.Service {
	t.Helper()
	s, err := r.Client.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vip is a service's address of a family with the port of that name.
func vip(t *testing.T, s *corev1.Service, family int, port string) netip.AddrPort {
	t.Helper()
	for _, a := range s.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(a); err == nil && addr.Is4() == (family == 4) {
			for _, p := range s.Spec.Ports {
				if p.Name == port {
					return netip.AddrPortFrom(addr, uint16(p.Port))
				}
			}
		}
	}
	t.Fatalf("service %s has no IPv%d address with a port %q: %v", s.Name, family, port, s.Spec)
	return netip.AddrPort{}
}

func nodePort(t *testing.T, s *corev1.Service, port string) uint16 {
	t.Helper()
	for _, p := range s.Spec.Ports {
		if p.Name == port && p.NodePort != 0 {
			return uint16(p.NodePort)
		}
	}
	t.Fatalf("service %s has no node port %q: %v", s.Name, port, s.Spec.Ports)
	return 0
}

// inside is a pod's network.
func (r *rig) inside(t *testing.T, p *corev1.Pod) *lab.Namespace {
	t.Helper()
	n, err := r.Namespace(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// answer is what `vswitch-demo hello` says.
type answer struct {
	name   string
	client netip.Addr
	port   uint16
}

// ask makes one new connection from a namespace, or sends one datagram, and reads
// who answers.
func ask(from *lab.Namespace, network string, to netip.AddrPort) (answer, error) {
	conn, err := dial(from, network, to)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return askOver(conn, network)
}

// askOver asks once more over a connection that is open.
func askOver(conn net.Conn, network string) (answer, error) {
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 4096)
	said := ""
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return answer{}, err
		}
		n, err := conn.Read(b)
		if err != nil {
			return answer{}, err
		}
		said = string(b[:n])
	} else {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: hello\r\n\r\n"); err != nil {
			return answer{}, err
		}
		// One answer fits a segment, and the next comes only when asked for.
		n, err := conn.Read(b)
		if err != nil {
			return answer{}, err
		}
		head, body, found := strings.Cut(string(b[:n]), "\r\n\r\n")
		if !found || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			return answer{}, fmt.Errorf("answer %q", b[:n])
		}
		said = body
	}
	var a answer
	var client string
	if _, err := fmt.Sscan(said, &a.name, &client, &a.port); err != nil {
		return answer{}, fmt.Errorf("answer %q: %w", said, err)
	}
	var err error
	a.client, err = netip.ParseAddr(client)
	return a, err
}

func dial(from *lab.Namespace, network string, to netip.AddrPort) (net.Conn, error) {
	return cluster.DialFrom(from)(context.Background(), network, to.String())
}

// sawAll asks until every one of these has answered, and nobody else does.
func sawAll(from *lab.Namespace, network string, to netip.AddrPort, want ...string) error {
	seen := map[string]bool{}
	for range 40 * len(want) {
		a, err := ask(from, network, to)
		if err != nil {
			return err
		}
		if !slices.Contains(want, a.name) {
			return fmt.Errorf("%s %v: %s answered, want one of %v", network, to, a.name, want)
		}
		if seen[a.name] = true; len(seen) == len(want) {
			return nil
		}
	}
	return fmt.Errorf("%s %v: only %v answered, want %v", network, to, seen, want)
}

// ping sends n echo requests and fails unless each is answered once.
func ping(from *lab.Namespace, to netip.Addr, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return from.Ping(ctx, to, n, 10*time.Millisecond)
}

// httpStatus is the status by which a URL answers, from a namespace.
func httpStatus(from *lab.Namespace, url string) (int, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: cluster.DialFrom(from), DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	return r.StatusCode, r.Body.Close()
}
