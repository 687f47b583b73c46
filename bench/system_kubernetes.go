package bench

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
	"vswitch/internal/lab/cluster"
	"vswitch/internal/lab/crowd"
)

// One real node in a large cluster: the real API server with the objects of thousands
// of nodes (package crowd), and vswitch's daemon as the first of them.

// kubernetes is such a cluster.
type kubernetes struct {
	*cluster.Cluster
	crowd   *crowd.Crowd
	node    *lab.Node
	changes []int // how often each service has changed; the load's
}

const (
	// firstNode is the name of the node that is real.
	firstNode = "a"
	// probeServices are those whose changes are timed.
	probeServices = 200
	// metricsAddress is on the node's loopback.
	metricsAddress = "127.0.0.1:9472"
	// fillTimeout is for the largest cluster to be written and for its API server to
	// have read it.
	fillTimeout = 15 * time.Minute
	// localPods of the real node: who asks and who answers.
	localPods = 2
)

// smallCluster is what a node of a large one is compared with.
var smallCluster = crowd.Size{Nodes: 2, Pods: 100, Services: 10}

func openKubernetes(ctx context.Context, l *lab.Lab, k networkKey) (*network, error) {
	c, err := crowd.New(k.cluster, firstNode, probeServices)
	if err != nil {
		return nil, err
	}
	control, err := cluster.Start(ctx, l, cluster.Config{Dir: filepath.Join(l.BinDir(), "k8s"), PodDir: l.BinDir(), Fill: c.Write})
	if err != nil {
		return nil, err
	}
	n := &network{kubernetes: &kubernetes{Cluster: control, crowd: c, changes: make([]int, c.AllServices())}}
	if err := n.kubernetes.run(ctx, k); err != nil {
		control.Close()
		return nil, err
	}
	if err := n.kubernetes.populate(ctx, n, k.pods); err != nil {
		control.Close()
		return nil, err
	}
	nodes := []*lab.Node{n.kubernetes.node}
	n.dropped = func(ctx context.Context) (map[string]uint64, error) { return vswitchDrops(ctx, nodes) }
	return n, nil
}

// run starts the daemon.
func (k *kubernetes) run(ctx context.Context, key networkKey) (err error) {
	if k.node, err = k.Lab.AddNode(firstNode); err != nil {
		return err
	}
	config, err := k.WriteKubeconfig("vswitch", pkix.Name{CommonName: "vswitch", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	return k.node.StartDaemon(ctx, lab.RunConfig{Store: "kubernetes", Args: []string{
		"--kubeconfig", config, "--cluster-cidr", crowd.PodCIDR.String(), "--service-cidr", cluster.ServiceCIDRs[0].String(),
		"--metrics-address", metricsAddress, "--mtu", strconv.Itoa(key.mtuBytes),
	}})
}

// populate makes the node's pods, and a service before the one that answers.
func (k *kubernetes) populate(ctx context.Context, n *network, pods int) error {
	for i := range pods {
		spec := lab.PodSpec{Name: fmt.Sprintf("idle-%d", i)}
		switch i {
		case 0:
			spec.Name = "client"
		case 1:
			spec.Name = "server"
		}
		p, err := k.node.AddPod(ctx, spec)
		if err != nil {
			return err
		}
		switch i {
		case 0:
			n.client = p.Namespace
		case 1:
			n.server = p.Namespace
			if err := k.serve(ctx, p); err != nil {
				return err
			}
			n.to = serviceAddr
		}
	}
	return nil
}

// serve puts serviceAddr before a pod.
func (k *kubernetes) serve(ctx context.Context, p *lab.Pod) error {
	at := serviceAddr.String()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "server"}, Spec: corev1.ServiceSpec{ClusterIP: at, ClusterIPs: []string{at}}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "server", Labels: map[string]string{discoveryv1.LabelServiceName: "server"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{p.IPv4.String()}, NodeName: new(firstNode)}},
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: string(protocol), Protocol: protocol, Port: loadPort})
		s.Spec.Ports[len(s.Spec.Ports)-1].Name = map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp"}[protocol]
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
			Name: new(s.Spec.Ports[len(s.Spec.Ports)-1].Name), Protocol: new(protocol), Port: new(int32(loadPort)),
		})
	}
	if _, err := k.Client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, s, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := k.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{})
	return err
}
