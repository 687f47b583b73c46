package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
)

// A container is a process in the pod's network namespace and in a mount namespace
// of its own, where /etc/resolv.conf and the service account's token are what the
// pod's are. The rest of the file system is the machine's.

// inContainer sets up the mounts and becomes the command.
const inContainer = `set -e
mount --bind "$0/resolv.conf" /etc/resolv.conf
mount -t tmpfs tmpfs /run
if [ -e "$0/token" ]; then
	mkdir -p /run/secrets/kubernetes.io/serviceaccount
	mount --bind "$0" /run/secrets/kubernetes.io/serviceaccount
fi
exec "$@"`

// writeFiles writes what the containers find: the resolver and, unless the pod
// wants none, the service account's token, certificate and namespace.
func (p *pod) writeFiles(ctx context.Context, latest *corev1.Pod) error {
	p.files = p.kubelet.cluster.path("pods", string(latest.UID))
	if err := os.MkdirAll(p.files, 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	files := map[string]string{"resolv.conf": fmt.Sprintf(
		"nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", DNSAddr, latest.Namespace)}
	if latest.Spec.AutomountServiceAccountToken == nil || *latest.Spec.AutomountServiceAccountToken {
		seconds := int64(3607) // as kubelet asks for
		token, err := p.kubelet.client.CoreV1().ServiceAccounts(latest.Namespace).CreateToken(ctx, latest.Spec.ServiceAccountName,
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
				ExpirationSeconds: &seconds,
				BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: latest.Name, UID: latest.UID},
			}}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("cluster: token of %s/%s: %w", latest.Namespace, latest.Spec.ServiceAccountName, err)
		}
		files["token"], files["ca.crt"], files["namespace"] = token.Status.Token, string(p.kubelet.cluster.ca.certPEM), latest.Namespace
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(p.files, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}

// startContainer starts a container's command; nil for one without, which does
// nothing but be there.
func (p *pod) startContainer(latest *corev1.Pod, c *corev1.Container) (*lab.Process, error) {
	if len(c.Command) == 0 {
		return nil, nil
	}
	command := p.command(latest.Name, append(append([]string(nil), c.Command...), c.Args...))
	command.Name = latest.Namespace + "-" + latest.Name + "-" + c.Name
	for _, e := range c.Env {
		command.Env = append(command.Env, e.Name+"="+e.Value)
	}
	return p.net.Space.Start(command)
}

func (p *pod) command(hostname string, args []string) lab.Command {
	cfg := p.kubelet.cluster.cfg
	return lab.Command{
		Path: "unshare", Args: append([]string{"-m", "sh", "-c", inContainer, p.files}, args...),
		Env: []string{
			"HOSTNAME=" + hostname, "PATH=" + cfg.PodDir + ":" + cfg.Dir + ":" + os.Getenv("PATH"),
			"KUBERNETES_SERVICE_HOST=" + ServiceCIDRs[0].Addr().Next().String(), "KUBERNETES_SERVICE_PORT=" + strconv.Itoa(443),
		},
	}
}

// Exec runs a command in a pod that runs, as if in its container, and returns what
// it wrote.
func (c *Cluster) Exec(ctx context.Context, pod *corev1.Pod, args ...string) ([]byte, error) {
	k, err := c.kubeletOf(pod)
	if err != nil {
		return nil, err
	}
	space, err := k.Pod(pod.UID)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	p := k.pods[pod.UID]
	k.mu.Unlock()
	return space.Exec(ctx, p.command(pod.Name, args))
}

// Namespace is the network namespace of a pod that runs.
func (c *Cluster) Namespace(pod *corev1.Pod) (*lab.Namespace, error) {
	k, err := c.kubeletOf(pod)
	if err != nil {
		return nil, err
	}
	return k.Pod(pod.UID)
}

func (c *Cluster) kubeletOf(pod *corev1.Pod) (*Kubelet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.Host == pod.Spec.NodeName {
			return n.Kubelet, nil
		}
	}
	return nil, fmt.Errorf("cluster: pod %s/%s is on node %q, which is not of this lab", pod.Namespace, pod.Name, pod.Spec.NodeName)
}
