package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"vswitch/internal/lab"
)

// heartbeat is how often a node says that it lives: kubelet's own default.
const heartbeat = 10 * time.Second

// Node is a machine that joined the cluster.
type Node struct {
	*lab.Node
	Kubelet *Kubelet
}

// Kubelet is what a node's kubelet and container runtime do, as far as networks
// go. It registers the Node and keeps it ready; makes a namespace for each pod bound
// to the node, calls the CNI plugin as a runtime does and reports what it said; runs
// the containers' commands in it; probes them from the node; and when the pod is
// deleted ends them, calls the plugin's DEL and removes the pod. It has a kubelet's
// rights and no more.
//
// There is one image, Image: what wants another waits for it in vain. It speaks to the
// API server from the node's own namespace.
type Kubelet struct {
	cluster *Cluster
	node    *lab.Node
	client  *kubernetes.Clientset
	log     *slog.Logger

	mu      sync.Mutex // guards the rest
	pods    map[types.UID]*pod
	network Network
}

// Image is the one image that nodes of a lab have: the machine's own file system.
const Image = "lab"

// AddNode makes a machine, registers it as a Node with these labels and starts its
// kubelet. The Node is not ready before SetReady.
func (c *Cluster) AddNode(ctx context.Context, name string, labels map[string]string) (*Node, error) {
	machine, err := c.Lab.AddNode(name)
	if err != nil {
		return nil, err
	}
	config, err := c.REST(machine.Namespace, pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}})
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	logFile, err := os.OpenFile(c.path(name+".kubelet.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	k := &Kubelet{cluster: c, node: machine, client: client, log: slog.New(slog.NewTextHandler(logFile, nil)), pods: map[types.UID]*pod{}, network: plugin{machine}}
	if err := retry(ctx, "register node "+name, func() error { return k.register(ctx, labels) }); err != nil {
		return nil, err
	}
	n := &Node{Node: machine, Kubelet: k}
	c.mu.Lock()
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	c.Go(k.beat)
	c.Go(func(ctx context.Context) {
		defer logFile.Close()
		k.run(ctx)
	})
	return n, nil
}

func (k *Kubelet) register(ctx context.Context, labels map[string]string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.node.Host, Labels: map[string]string{corev1.LabelHostname: k.node.Host}}}
	for key, v := range labels {
		node.Labels[key] = v
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: k.node.Host}}
	for _, a := range k.hostIPs() {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	node.Status.Conditions = []corev1.NodeCondition{nodeReady(false)}
	_, err := k.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func nodeReady(ready bool) corev1.NodeCondition {
	c := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}
	if !ready {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "KubeletNotReady", "network plugin is not ready"
	}
	return c
}

// SetReady reports the Node ready, as a kubelet does once its runtime's network is.
func (k *Kubelet) SetReady(ctx context.Context, ready bool) error {
	patch := corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{nodeReady(ready)}}}
	return retry(ctx, "report node "+k.node.Host, func() error {
		_, err := k.client.CoreV1().Nodes().Patch(ctx, k.node.Host, types.StrategicMergePatchType, statusPatch("", patch.Status), metav1.PatchOptions{}, "status")
		return err
	})
}

// beat renews the node's lease, without which its pods would be evicted.
func (k *Kubelet) beat(ctx context.Context) {
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds := int32(40)
	for ; ctx.Err() == nil; wait(ctx, heartbeat) {
		now := metav1.NewMicroTime(time.Now())
		lease, err := leases.Get(ctx, k.node.Host, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: k.node.Host}}
			lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &k.node.Host, LeaseDurationSeconds: &seconds, RenewTime: &now}
			_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
		case err == nil:
			lease.Spec.RenewTime = &now
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		}
		if err != nil && ctx.Err() == nil {
			k.log.Warn("heartbeat", "error", err)
		}
	}
}

// run keeps the node's pods as the API server has them, until ctx ends.
func (k *Kubelet) run(ctx context.Context) {
	factory := informers.NewSharedInformerFactoryWithOptions(k.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.node.Host).String()
	}))
	var wg sync.WaitGroup
	see := func(p *corev1.Pod, gone bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		known := k.pods[p.UID]
		if known == nil {
			if gone {
				return
			}
			known = &pod{kubelet: k, wake: make(chan struct{}, 1)}
			k.pods[p.UID] = known
			defer wg.Go(func() {
				known.run(ctx)
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.pods, p.UID)
			})
		}
		known.see(p, gone)
	}
	factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { see(o.(*corev1.Pod), false) },
		UpdateFunc: func(_, o any) { see(o.(*corev1.Pod), false) },
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			see(o.(*corev1.Pod), true)
		},
	})
	factory.Start(ctx.Done())
	<-ctx.Done()
	factory.Shutdown()
	wg.Wait()
}

// Pod is the network namespace of a pod of this node, which must run.
func (k *Kubelet) Pod(uid types.UID) (*lab.Namespace, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[uid]
	if p == nil {
		return nil, fmt.Errorf("cluster: node %s has no pod %s", k.node.Host, uid)
	}
	return p.namespace()
}

// Anew ends a pod's processes and network and makes them again, as a kubelet does
// for a pod whose sandbox has died: the API server is not asked, and the pod may get
// other addresses.
func (k *Kubelet) Anew(uid types.UID) error {
	k.mu.Lock()
	p := k.pods[uid]
	k.mu.Unlock()
	if p == nil {
		return fmt.Errorf("cluster: node %s has no pod %s", k.node.Host, uid)
	}
	p.mu.Lock()
	p.anew = true
	p.mu.Unlock()
	p.poke()
	return nil
}

// hostIPs are the node's own addresses.
func (k *Kubelet) hostIPs() (all []netip.Addr) {
	for _, a := range []netip.Addr{k.node.Underlay4, k.node.Underlay6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// errLeaving: a pod is no longer wanted.
var errLeaving = errors.New("the pod is leaving")

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
