package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// What `vswitch run` can be told, on a whole cluster.

// An underlay of IPv6 alone carries both families, and NodePorts of both.
func TestIPv6Underlay(t *testing.T) {
	need(t, "ping")
	c := newClusterOn(t, lab.Config{NoIPv4: true})
	serveName(t, c.a2, 8080)
	c.eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		if err := ping(from, to.IP(family), 20); err != nil {
			t.Error(err)
		}
		echo := netip.AddrPortFrom(to.IP(family), 7200+uint16(family))
		body := strings.Repeat("x", 60000) // several packets, a full super-frame
		listenTCP(t, to.Namespace, echo, func(conn net.Conn) { fmt.Fprint(conn, body) })
		conn, err := dial(from.Namespace, "tcp", netip.AddrPort{}, echo)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := wantAll(conn, body); err != nil {
			t.Error(err)
		}
	})
	s := c.nodePortService(c.b1)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		to := netip.AddrPortFrom(n.Underlay6, s.nodePort(t, "tcp"))
		c.eventually("the NodePort answers", func() error { return sawAll(outside.Namespace, "tcp", to, "b1") })
	}
	for _, family := range []int{4, 6} {
		for _, p := range []*lab.Pod{c.a1, c.b2} {
			if err := sawAll(p.Namespace, "udp", netip.AddrPortFrom(s.ip(family), 80), "b1"); err != nil {
				t.Errorf("IPv%d service from %s: %v", family, p.Spec.Name, err)
			}
		}
	}
}

func wantAll(conn net.Conn, body string) error {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, len(body))
	for n := 0; n < len(b); {
		m, err := conn.Read(b[n:])
		if n += m; err != nil && n < len(b) {
			return fmt.Errorf("%d of %d bytes: %w", n, len(b), err)
		}
	}
	if string(b) != body {
		return errors.New("other bytes than were sent")
	}
	return nil
}

// nodePortService makes a dual-stack service with one endpoint that says its name.
func (c *cluster) nodePortService(p *lab.Pod) service {
	c.t.Helper()
	serveName(c.t, p, 8080)
	c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: one}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ports:
  - {name: tcp, port: 80, protocol: TCP}
  - {name: udp, port: 80, protocol: UDP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: one-4, labels: {kubernetes.io/service-name: one}}
addressType: IPv4
ports: [{name: tcp, port: 8080, protocol: TCP}, {name: udp, port: 8080, protocol: UDP}]
endpoints: [{addresses: ["%v"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: one-6, labels: {kubernetes.io/service-name: one}}
addressType: IPv6
ports: [{name: tcp, port: 8080, protocol: TCP}, {name: udp, port: 8080, protocol: UDP}]
endpoints: [{addresses: ["%v"]}]
`, p.IPv4, p.IPv6))
	s := c.service("one")
	c.eventually("the service is known on both nodes", func() error {
		for _, from := range []*lab.Pod{c.a1, c.b2} {
			for _, family := range []int{4, 6} {
				if err := sawAll(from.Namespace, "tcp", netip.AddrPortFrom(s.ip(family), 80), p.Spec.Name); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return s
}

// --mtu is what pods get: they fill it, on one node and across, and no more.
func TestMTU(t *testing.T) {
	need(t, "ping")
	const mtu = 1311
	c := newCluster(t, "--mtu", strconv.Itoa(mtu))
	c.eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		eth0 := mustLink(t, from)
		if got := eth0.Attrs().MTU; got != mtu {
			t.Errorf("eth0 has MTU %d, want %d", got, mtu)
		}
		payload := mtu - 28 // RFC 791, RFC 792
		if family == 6 {
			payload = mtu - 48 // RFC 8200, RFC 4443
		}
		sizes := map[int]bool{payload: true}
		if to == c.a2 { // it doesn't leave the pod: once will do
			sizes[payload+1] = false
		}
		for size, want := range sizes {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			out, err := from.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-c", "1", "-w", "10", "-M", "do", "-s", strconv.Itoa(size), to.IP(family).String()}})
			cancel()
			if (err == nil) != want {
				t.Errorf("ping of %d bytes: %v, want success to be %v\n%s", size, err, want, out)
			}
		}
	})
}

// --host-ports=false leaves the host's ports alone; services work from pods.
func TestNoHostPorts(t *testing.T) {
	c := newCluster(t, "--host-ports=false")
	s := c.nodePortService(c.b1)
	outside, err := c.lab.Outside()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		for _, a := range []netip.Addr{n.Underlay4, n.Underlay6} {
			_, err := dial(outside.Namespace, "tcp", netip.AddrPort{}, netip.AddrPortFrom(a, s.nodePort(t, "tcp")))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("NodePort at %v: %v, want connection refused", a, err)
			}
		}
	}
}

// The store over TLS: nodes with certificates of its authority join, and one
// without, or with another authority's, is told why it can't.
func TestStoreTLS(t *testing.T) {
	need(t, "ping")
	c := newNodes(t, lab.Config{})
	dir := t.TempDir()
	ca, stranger := newAuthority(t, dir, "ca"), newAuthority(t, dir, "stranger")
	args := func(a *authority, n *lab.Node) []string {
		cert, key := a.issue(t, n.Host, n.Underlay4)
		return []string{"--store-ca", ca.file, "--store-cert", cert, "--store-key", key}
	}
	url := "https://" + c.nodes[0].Underlay4.String() + ":2379"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	start := func(n *lab.Node, store string, args ...string) {
		t.Helper()
		if err := n.StartDaemon(ctx, lab.RunConfig{Store: store, Args: args}); err != nil {
			t.Fatal(err)
		}
	}
	start(c.nodes[0], "embedded", append(args(ca, c.nodes[0]), "--listen-client", url)...)

	// At the same time, as each takes as long as a store may take to answer.
	strangers := map[string][]string{
		"no-certificate":    {"--store-ca", ca.file},
		"other-certificate": args(stranger, c.nodes[1]),
		"other-authority":   {"--store-ca", stranger.file},
	}
	procs := map[string]*lab.Process{}
	for name, bad := range strangers {
		port := 9000 + 10*len(procs)
		p, err := c.nodes[1].Start(lab.Command{Name: name, Path: filepath.Join(labtest.BinDir(t), "vswitch"), Args: append([]string{
			"run", "--node", name, "--store", "etcd=" + url, "--underlay", c.nodes[1].Underlay4.String(), "--udp-port", strconv.Itoa(port),
			"--socket", filepath.Join(dir, name+".sock"), "--state-dir", filepath.Join(dir, name)}, bad...)})
		if err != nil {
			t.Fatal(err)
		}
		procs[name] = p
	}
	for name, p := range procs {
		if _, err := p.WaitLog(ctx, regexp.MustCompile(`level=WARN .*(certificate|tls)`)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := p.Stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(p.Log(), "vswitch: ready") {
			t.Errorf("%s: the node is ready all the same:\n%s", name, p.Log())
		}
	}

	start(c.nodes[1], "etcd="+url, args(ca, c.nodes[1])...)
	c.addPods()
	c.nodePortService(c.b1)
}

// authority signs certificates for a test.
type authority struct {
	dir, file string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{dir: dir, file: filepath.Join(dir, name+".pem"), key: newKey(t)}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	writePEM(t, a.file, "CERTIFICATE", a.sign(t, a.cert, a.key))
	return a
}

// issue makes a certificate for server and client at once, as each node has one.
func (a *authority) issue(t *testing.T, name string, addr netip.Addr) (cert, key string) {
	t.Helper()
	k := newKey(t)
	der := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{addr.AsSlice()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, k)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSuffix(a.file, ".pem") + "-" + name
	writePEM(t, base+".crt", "CERTIFICATE", der)
	writePEM(t, base+".key", "PRIVATE KEY", keyDER)
	return base + ".crt", base + ".key"
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, subject *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &subject.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
