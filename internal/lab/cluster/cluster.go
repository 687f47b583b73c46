// Package cluster runs Kubernetes in a lab: the real kube-apiserver,
// kube-controller-manager and etcd on a machine of their own on the underlay, and
// on each node what kubelet and a container runtime do as far as networks go.
//
// Nodes, Pods, ReplicaSets, Services and EndpointSlices are the API server's and
// the controllers' own. What is played here is the kubelet (Kubelet) and the
// scheduler (Scheduler): a pod's containers are processes in a network namespace
// that the node's CNI plugin set up, without an image. The package starts no vswitch.
//
// Everything lives in the lab and ends with it; Close ends what runs in this
// process before.
package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"vswitch/internal/lab"
)

// The cluster's prefixes: those that vswitch takes by default.
var (
	PodCIDRs     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	// DNSAddr is where pods ask; nobody listens there unless the nodes do.
	DNSAddr = netip.MustParseAddr("10.96.0.10")
)

// apiPort is where the API server listens on its machine's underlay addresses.
const apiPort = 6443

// Config of a Cluster.
type Config struct {
	// Dir holds kube-apiserver, kube-controller-manager, etcd and kubectl.
	Dir string
	// PodDir is put before PATH in pods: where their programs are.
	PodDir string
	// Fill writes what the API server finds in its store when it starts first. With it
	// there are neither controllers nor a scheduler, who would not leave it as it is: no
	// kubelet stands behind it.
	Fill func(context.Context, *clientv3.Client) error
}

// Cluster is a control plane and the nodes that joined it.
type Cluster struct {
	Lab *lab.Lab
	// Control is the machine of the control plane. It is no node of Kubernetes.
	Control *lab.Node
	// Client may do everything, from the control plane's machine.
	Client *kubernetes.Clientset

	cfg    Config
	ca     *authority
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	etcd, apiserver, controllers *lab.Process

	mu    sync.Mutex
	nodes []*Node
}

// Start makes the control plane's machine and runs the control plane on it. It
// returns once the API server is ready and knows the services' addresses.
func Start(ctx context.Context, l *lab.Lab, cfg Config) (*Cluster, error) {
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "etcd", "kubectl"} {
		if _, err := os.Stat(filepath.Join(cfg.Dir, name)); err != nil {
			return nil, fmt.Errorf("cluster: %w: `make k8s` builds it", err)
		}
	}
	c := &Cluster{Lab: l, cfg: cfg}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	err := c.start(ctx)
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.Control, err = c.Lab.AddNode("control"); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("pki"), 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	if err := c.writeCertificates(); err != nil {
		return err
	}
	config, err := c.REST(c.Control.Namespace, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	if c.Client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if err := c.StartEtcd(ctx); err != nil {
		return err
	}
	if c.cfg.Fill != nil {
		if err := c.fill(ctx); err != nil {
			return err
		}
		return c.StartAPIServer(ctx)
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	if err := c.startControllers(ctx); err != nil {
		return err
	}
	return c.schedule()
}

// fill has the store filled before anybody reads it.
func (c *Cluster) fill(ctx context.Context) error {
	dial := DialFrom(c.Control.Namespace)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdURL}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dial(ctx, "tcp", strings.TrimPrefix(etcdURL, "http://"))
		}),
	}})
	if err != nil {
		return fmt.Errorf("cluster: etcd: %w", err)
	}
	defer client.Close()
	return c.cfg.Fill(ctx, client)
}

// Close ends the kubelets and the scheduler, waits for them, and kills the control
// plane, which takes longer to end than anybody cares. The lab's Close ends the rest.
func (c *Cluster) Close() {
	c.cancel()
	c.wg.Wait()
	for _, p := range []*lab.Process{c.controllers, c.apiserver, c.etcd} {
		if p != nil {
			p.Kill()
		}
	}
}

// Go runs f until the cluster is closed.
func (c *Cluster) Go(f func(context.Context)) {
	c.wg.Go(func() { f(c.ctx) })
}

// path is a file of the control plane.
func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.Lab.Dir, "control"}, elem...)...)
}

// Endpoint is the API server's own address, which needs no service.
func (c *Cluster) Endpoint() netip.AddrPort {
	return netip.AddrPortFrom(c.Control.Underlay(), apiPort)
}

// URL is Endpoint's.
func (c *Cluster) URL() string { return "https://" + c.Endpoint().String() }

// REST is how a client on a machine speaks to the API server as user, whom the
// cluster's authority vouches for.
func (c *Cluster) REST(from *lab.Namespace, user pkix.Name) (*rest.Config, error) {
	cert, key, err := c.ca.issue(user, nil)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            c.URL(),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.certPEM, CertData: cert, KeyData: key},
		Dial:            DialFrom(from),
		QPS:             -1, // the tests' own load is theirs to limit
	}, nil
}

// DialFrom opens connections from inside a namespace. Addresses must be literal.
func DialFrom(from *lab.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := from.Do(func() (err error) {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// WriteKubeconfig writes a kubeconfig file for user to the lab's directory.
func (c *Cluster) WriteKubeconfig(name string, user pkix.Name) (path string, err error) {
	cert, key, err := c.ca.issue(user, nil)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(name, &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
}

// WriteTokenKubeconfig writes a kubeconfig file for the owner of a token.
func (c *Cluster) WriteTokenKubeconfig(name, token string) (path string, err error) {
	return c.writeKubeconfig(name, &clientcmdapi.AuthInfo{Token: token})
}

func (c *Cluster) writeKubeconfig(name string, who *clientcmdapi.AuthInfo) (path string, err error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: c.URL(), CertificateAuthorityData: c.ca.certPEM}
	config.AuthInfos["user"] = who
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "user"}
	config.CurrentContext = "lab"
	path = c.path(name + ".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	return path, nil
}

// Kubectl runs kubectl as an administrator on the control plane's machine.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	config := c.path("admin.kubeconfig")
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		if _, err := c.WriteKubeconfig("admin", pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}); err != nil {
			return nil, err
		}
	}
	return c.Control.Exec(ctx, lab.Command{
		Name:  "kubectl " + args[0],
		Path:  filepath.Join(c.cfg.Dir, "kubectl"),
		Args:  append([]string{"--kubeconfig", config}, args...),
		Stdin: strings.NewReader(stdin),
	})
}

// retry calls f every tenth of a second until it succeeds or ctx ends.
func retry(ctx context.Context, what string, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}
