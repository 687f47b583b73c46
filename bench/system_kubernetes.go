package bench

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
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

// One real node in a large cluster: an API server with the objects of thousands of
// nodes (package crowd), and vswitch's daemon as the first of them. The API server is the
// real one, or, to go further than that goes on a small machine, a stand-in that says
// the same to one node.

// kubernetes is such a cluster.
type kubernetes struct {
	lab     *lab.Lab
	crowd   *crowd.Crowd
	node    *lab.Node
	put     func(context.Context, *discoveryv1.EndpointSlice) error
	close   func()
	others  int   // services, of one slice each, beside the crowd's
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
	n := &network{kubernetes: &kubernetes{lab: l, crowd: c, changes: make([]int, c.AllServices()), close: func() {}}}
	open := n.openReal
	if k.topology == Simulated {
		open = n.openSimulated
	}
	err = open(ctx, k)
	if err == nil {
		err = n.kubernetes.synced(ctx)
	}
	if err != nil {
		n.kubernetes.close()
		return nil, err
	}
	nodes := []*lab.Node{n.kubernetes.node}
	n.dropped = func(ctx context.Context) (map[string]uint64, error) { return vswitchDrops(ctx, nodes) }
	return n, nil
}

// openReal has the objects in the real API server, and pods that talk.
func (n *network) openReal(ctx context.Context, key networkKey) error {
	k := n.kubernetes
	control, err := cluster.Start(ctx, k.lab, cluster.Config{Dir: filepath.Join(k.lab.BinDir(), "k8s"), PodDir: k.lab.BinDir(), Fill: k.crowd.Write})
	if err != nil {
		return err
	}
	k.close = control.Close
	k.put = func(ctx context.Context, s *discoveryv1.EndpointSlice) error {
		_, err := control.Client.DiscoveryV1().EndpointSlices(s.Namespace).Update(ctx, s, metav1.UpdateOptions{})
		return err
	}
	config, err := control.WriteKubeconfig("vswitch", pkix.Name{CommonName: "vswitch", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	if k.node, err = k.lab.AddNode(firstNode); err != nil {
		return err
	}
	if err := k.run(ctx, key, "--kubeconfig", config, "--service-cidr", cluster.ServiceCIDRs[0].String()); err != nil {
		return err
	}
	server, err := n.populate(ctx, key.pods)
	if err != nil {
		return err
	}
	n.to = serviceAddr
	k.others = 2 // the API server's own, and this
	return serve(ctx, control, server)
}

// openSimulated has a stand-in of the API server on the node's loopback.
func (n *network) openSimulated(ctx context.Context, key networkKey) (err error) {
	k := n.kubernetes
	if k.node, err = k.lab.AddNode(firstNode); err != nil {
		return err
	}
	var l net.Listener
	if err := k.node.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		return err
	}
	server := crowd.Serve(k.crowd, l)
	k.close = func() { server.Close() }
	k.put = func(_ context.Context, s *discoveryv1.EndpointSlice) error { return server.Put(s) }
	if err := k.run(ctx, key, "--apiserver", "http://"+l.Addr().String(), "--service-cidr", crowd.ServiceCIDR.String()); err != nil {
		return err
	}
	_, err = k.node.AddPod(ctx, lab.PodSpec{Name: clientPod})
	return err
}

// run starts the daemon.
func (k *kubernetes) run(ctx context.Context, key networkKey, args ...string) error {
	return k.node.StartDaemon(ctx, lab.RunConfig{Store: "kubernetes", Args: append([]string{
		"--cluster-cidr", crowd.PodCIDR.String(), "--metrics-address", metricsAddress, "--mtu", strconv.Itoa(key.mtuBytes),
	}, args...)})
}

// clientPod is the pod whose packets are traced.
const clientPod = "client"

// populate makes the node's pods: the client, the server, which it returns, and others
// that do nothing.
func (n *network) populate(ctx context.Context, pods int) (server *lab.Pod, err error) {
	for i := range pods {
		spec := lab.PodSpec{Name: fmt.Sprintf("idle-%d", i)}
		switch i {
		case 0:
			spec.Name = clientPod
		case 1:
			spec.Name = "server"
		}
		p, err := n.kubernetes.node.AddPod(ctx, spec)
		if err != nil {
			return nil, err
		}
		switch i {
		case 0:
			n.client = p.Namespace
		case 1:
			n.server, server = p.Namespace, p
		}
	}
	return server, nil
}

// serve puts serviceAddr before a pod.
func serve(ctx context.Context, c *cluster.Cluster, p *lab.Pod) error {
	at := serviceAddr.String()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "server"}, Spec: corev1.ServiceSpec{ClusterIP: at, ClusterIPs: []string{at}}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "server", Labels: map[string]string{discoveryv1.LabelServiceName: "server"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{p.IPv4.String()}, NodeName: new(firstNode)}},
	}
	for name, protocol := range map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Protocol: protocol, Port: loadPort})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: new(int32(loadPort))})
	}
	if _, err := c.Client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, s, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{})
	return err
}
