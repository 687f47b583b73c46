package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
)

// The control plane's processes, each with its log in the lab's directory.

// etcdURL is where the API server's store listens, for its machine alone.
const etcdURL = "http://127.0.0.1:2379"

// etcdQuota bounds what the store holds; its default, 2 GB, is less than large clusters need.
const etcdQuota = 8 << 30

// StartEtcd starts the API server's store on loopback, for the first time or, with
// what it held, after StopEtcd. Nothing of it has to survive the machine, so it doesn't
// wait for disks.
func (c *Cluster) StartEtcd(ctx context.Context) (err error) {
	c.etcd, err = c.Control.Start(lab.Command{
		Path: filepath.Join(c.cfg.Dir, "etcd"),
		Args: []string{
			"--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
			"--quota-backend-bytes", strconv.Itoa(etcdQuota),
			"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
			"--initial-cluster", "default=http://127.0.0.1:2380",
		},
	})
	if err != nil {
		return err
	}
	return c.waitHealthy(ctx, c.etcd, etcdURL+"/health")
}

// StopEtcd kills the API server's store.
func (c *Cluster) StopEtcd() { c.etcd.Kill() }

// auditPolicy records who asked for what, without bodies: see Audit.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/readyz*", "/healthz*", "/livez*"]
- level: Metadata
`

// StartAPIServer starts the API server, for the first time or after
// StopAPIServer, and waits until it says that it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) (err error) {
	if err := os.WriteFile(c.path("audit.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.apiserver, err = c.Control.Start(lab.Command{
		Path: filepath.Join(c.cfg.Dir, "kube-apiserver"),
		Args: []string{
			"--etcd-servers=" + etcdURL,
			"--bind-address=::", fmt.Sprintf("--secure-port=%d", apiPort),
			"--advertise-address=" + c.Control.Underlay().String(),
			"--cert-dir=" + c.path("pki"),
			"--tls-cert-file=" + c.path("pki", "apiserver.crt"), "--tls-private-key-file=" + c.path("pki", "apiserver.key"),
			"--client-ca-file=" + c.path("pki", "ca.crt"),
			// Nobody has a certificate of this name: there are no aggregated APIs.
			"--requestheader-client-ca-file=" + c.path("pki", "ca.crt"), "--requestheader-allowed-names=front-proxy",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + c.path("pki", "tokens.key"),
			"--service-account-signing-key-file=" + c.path("pki", "tokens.key"),
			"--service-cluster-ip-range=" + join(ServiceCIDRs),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--audit-policy-file=" + c.path("audit.yaml"), "--audit-log-path=" + c.path("audit.log"),
		},
	})
	if err != nil {
		return err
	}
	if err := c.waitHealthy(ctx, c.apiserver, "https://127.0.0.1:6443/readyz"); err != nil {
		return err
	}
	return retry(ctx, "the service kubernetes", func() error {
		_, err := c.Client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		return err
	})
}

// StopAPIServer kills the API server: nobody is told, connections are reset.
func (c *Cluster) StopAPIServer() { c.apiserver.Kill() }

// startControllers starts the controllers: node CIDRs, endpoint slices, replica
// sets, namespaces, garbage, service accounts and the rest, all that there are.
func (c *Cluster) startControllers(ctx context.Context) error {
	config, err := c.WriteKubeconfig("controllers", pkix.Name{CommonName: "system:kube-controller-manager"})
	if err != nil {
		return err
	}
	c.controllers, err = c.Control.Start(lab.Command{
		Path: filepath.Join(c.cfg.Dir, "kube-controller-manager"),
		Args: []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--cert-dir=" + c.path("pki"),
			"--leader-elect=false", "--use-service-account-credentials=true",
			"--root-ca-file=" + c.path("pki", "ca.crt"),
			"--service-account-private-key-file=" + c.path("pki", "tokens.key"),
			"--allocate-node-cidrs=true", "--cluster-cidr=" + join(PodCIDRs),
			"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64",
			"--service-cluster-ip-range=" + join(ServiceCIDRs),
		},
	})
	if err != nil {
		return err
	}
	return c.waitHealthy(ctx, c.controllers, "https://127.0.0.1:10257/healthz")
}

// waitHealthy waits until a process answers 200 at a URL of its machine.
func (c *Cluster) waitHealthy(ctx context.Context, p *lab.Process, url string) error {
	// Its own certificate, on loopback: whether it answers is all that is asked.
	transport := &http.Transport{DialContext: DialFrom(c.Control.Namespace), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.Done():
			cancel(fmt.Errorf("%s ended:\n%s", p.Name, p.Tail(20)))
		case <-ctx.Done():
		}
	}()
	return retry(ctx, p.Name, func() error {
		r, err := client.Get(url)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s: %s", url, r.Status, body)
		}
		return nil
	})
}

func join(prefixes []netip.Prefix) string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

// Access is one thing that a user asked of the API server.
type Access struct {
	Verb, Group, Resource, Subresource string
	Code                               int32 // HTTP status of the answer
}

// Audit is what user asked for so far, each thing once, sorted.
func (c *Cluster) Audit(user string) ([]Access, error) {
	files, err := filepath.Glob(c.path("audit*.log"))
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	seen := map[Access]bool{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		err = readAudit(f, user, seen)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("cluster: %s: %w", name, err)
		}
	}
	var all []Access
	for a := range seen {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b Access) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	return all, nil
}

func readAudit(r io.Reader, user string, seen map[Access]bool) error {
	d := json.NewDecoder(r)
	for {
		// The fields of an audit.k8s.io/v1 Event that are used here.
		var e struct {
			Verb           string
			User           struct{ Username string }
			ObjectRef      struct{ APIGroup, Resource, Subresource string }
			ResponseStatus struct{ Code int32 }
		}
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // the last line may be half written
			return nil
		}
		if err != nil {
			return err
		}
		if e.User.Username == user && e.ObjectRef.Resource != "" {
			seen[Access{e.Verb, e.ObjectRef.APIGroup, e.ObjectRef.Resource, e.ObjectRef.Subresource, e.ResponseStatus.Code}] = true
		}
	}
}
