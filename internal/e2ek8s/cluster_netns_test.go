package e2ek8s

import (
	"context"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
	"vswitch/internal/lab/cluster"
)

// TestCluster is three nodes, and what users of a cluster rely on.
func TestCluster(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"a", "b", "c"} {
		r.addNode(t, name)
	}
	for _, promise := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"kubectl", testKubectl},
		{"Helm chart", testChart},
		{"services", testServices},
		{"API server from pods", testAPIFromPod},
		{"node ports", testNodePorts},
		{"host port", testHostPort},
		{"session affinity", testAffinity},
		{"headless services", testHeadless},
		{"endpoints that terminate", testTerminating},
		{"internal traffic policy", testInternalPolicy},
		{"events", testEvents},
		{"programming latency", testLatency},
		{"reboot", testReboot},
		{"outage of the API server", testOutage},
		{"etcd away", testEtcdAway},
		// Last: what all the others left behind.
		{"rights", testRights},
		{"logs and drops", testLogs},
	} {
		t.Run(promise.name, func(t *testing.T) { promise.test(t, r) })
	}
}

// addNode makes a machine with vswitch, attached to its own network, and waits
// until the API server has it as ready.
func (r *rig) addNode(t *testing.T, name string) *cluster.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n, err := r.AddNode(ctx, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.nodes = append(r.nodes, n)
	if err := n.StartDaemon(ctx, r.daemon(t, n)); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Vswitch(ctx, "", "host", "attach", "--netns", n.Path); err != nil {
		t.Fatalf("host attach: %v\n%s", err, out)
	}
	if err := n.Kubelet.SetReady(ctx, true); err != nil {
		t.Fatal(err)
	}
	return n
}

// daemon is how vswitch runs on a node of this cluster: with the rights of its own
// service account and no others.
func (r *rig) daemon(t *testing.T, n *cluster.Node) lab.RunConfig {
	t.Helper()
	config, err := r.WriteTokenKubeconfig("vswitch-"+n.Host, r.vswitchToken(t))
	if err != nil {
		t.Fatal(err)
	}
	c := lab.RunConfig{Store: "kubernetes", Args: []string{
		"--kubeconfig", config,
		"--underlay", n.Underlay4.String() + "," + n.Underlay6.String(),
		"--dns-address", cluster.DNSAddr.String(),
	}}
	if n.Host == "c" {
		// One node gets its first state by a list rather than a watch that begins with
		// it, as all do from an API server that can't do the latter.
		c.Env = []string{"KUBE_FEATURE_WatchListClient=false"}
	}
	return c
}

// What deploy/ makes: the account that the daemons run as.
const vswitchNamespace, vswitchAccount = "vswitch-system", "vswitch"

// vswitchToken is a token of the service account that the daemons run as.
func (r *rig) vswitchToken(t *testing.T) string {
	t.Helper()
	seconds := int64(24 * 3600)
	token, err := r.Client.CoreV1().ServiceAccounts(vswitchNamespace).CreateToken(t.Context(), vswitchAccount,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

func (r *rig) listNodes(t *testing.T) []corev1.Node {
	t.Helper()
	list, err := r.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func (r *rig) listPods(t *testing.T) []corev1.Pod {
	t.Helper()
	list, err := r.Client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}
