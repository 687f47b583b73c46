package e2ek8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"vswitch/internal/lab"
	"vswitch/internal/lab/cluster"
)

// flanneld does on a node what flannel does with the API server as its store and the
// vxlan backend: it writes its device's facts on its own Node, and sets up a route, a
// neighbour and a forwarding entry for each other Node that carries them. Pods get
// their network from the kernel's bridge.
type flanneld struct {
	node *cluster.Node
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex // guards the rest
	kernel *lab.Flannel
	err    error
}

// Annotations that flannel writes and reads (its default prefix).
const (
	flannelType   = "flannel.alpha.coreos.com/backend-type"
	flannelData   = "flannel.alpha.coreos.com/backend-data"
	flannelDataV6 = "flannel.alpha.coreos.com/backend-v6-data"
	flannelIP     = "flannel.alpha.coreos.com/public-ip"
	flannelIPv6   = "flannel.alpha.coreos.com/public-ipv6"
)

// startFlannel makes a node of the cluster a flannel node.
func (r *rig) startFlannel(t *testing.T, n *cluster.Node) *flanneld {
	t.Helper()
	var cidrs []netip.Prefix
	eventually(t, "the node has pod CIDRs", func() error {
		node, err := r.Client.CoreV1().Nodes().Get(t.Context(), n.Host, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(node.Spec.PodCIDRs) != 2 {
			return fmt.Errorf("it has %v", node.Spec.PodCIDRs)
		}
		cidrs = nil
		for _, c := range node.Spec.PodCIDRs {
			cidrs = append(cidrs, netip.MustParsePrefix(c))
		}
		return nil
	})
	kernel, err := n.Flannel(cidrs[0], cidrs[1], 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &flanneld{node: n, kernel: kernel, done: make(chan struct{})}
	me := kernel.Peer()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		flannelType:   "vxlan",
		flannelData:   fmt.Sprintf(`{"VNI":%d,"VtepMAC":%q}`, lab.FlannelVNI, me.MAC4),
		flannelDataV6: fmt.Sprintf(`{"VNI":%d,"VtepMAC":%q}`, lab.FlannelVNI, me.MAC6),
		flannelIP:     me.Underlay4.String(),
		flannelIPv6:   me.Underlay6.String(),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Client.CoreV1().Nodes().Patch(t.Context(), n.Host, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	factory := informers.NewSharedInformerFactory(r.Client, 0)
	see := func(o any) { f.see(o.(*corev1.Node)) }
	factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: see, UpdateFunc: func(_, o any) { see(o) },
	})
	factory.Start(ctx.Done())
	go func() {
		<-ctx.Done()
		factory.Shutdown()
		close(f.done)
	}()
	t.Cleanup(func() { cancel(); <-f.done })
	n.Kubelet.SetNetwork(f)
	return f
}

// see programs the kernel for another node.
func (f *flanneld) see(node *corev1.Node) {
	a := node.Annotations
	if node.Name == f.node.Host || a[flannelType] != "vxlan" || len(node.Spec.PodCIDRs) != 2 {
		return
	}
	peer := lab.FlannelPeer{CIDR4: netip.MustParsePrefix(node.Spec.PodCIDRs[0]), CIDR6: netip.MustParsePrefix(node.Spec.PodCIDRs[1])}
	var err4, err6, err error
	peer.MAC4, err4 = vtepMAC(a[flannelData])
	peer.MAC6, err6 = vtepMAC(a[flannelDataV6])
	if err = errors.Join(err4, err6); err == nil {
		if peer.Underlay4, err = netip.ParseAddr(a[flannelIP]); err == nil {
			peer.Underlay6, err = netip.ParseAddr(a[flannelIPv6])
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		err = f.kernel.AddPeer(peer)
	}
	if err != nil {
		f.err = errors.Join(f.err, fmt.Errorf("on %s, about %s: %w", f.node.Host, node.Name, err))
	}
}

func vtepMAC(data string) (net.HardwareAddr, error) {
	var d struct{ VtepMAC string }
	if err := json.Unmarshal([]byte(data), &d); err != nil {
		return nil, fmt.Errorf("flannel data %q: %w", data, err)
	}
	return net.ParseMAC(d.VtepMAC)
}

// Attach is the bridge plugin's part.
func (f *flanneld) Attach(context.Context, lab.PodSpec) (*cluster.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.kernel.AddPod()
	if err != nil {
		return nil, err
	}
	return &cluster.Attachment{
		Space: p.Namespace, IPs: []netip.Addr{p.IPv4, p.IPv6},
		Detach: func(context.Context) error { return p.Namespace.Close() },
	}, nil
}

// remove takes flannel off a node that has no pods left: its devices, and with them
// its routes, as the instructions for a move say.
func (f *flanneld) remove(t *testing.T) {
	t.Helper()
	f.stop()
	<-f.done
	if f.err != nil {
		t.Error(f.err)
	}
	for _, name := range []string{"flannel.1", "flannel-v6.1", "br0"} {
		if err := f.node.DeleteLink(name); err != nil {
			t.Error(err)
		}
	}
	f.node.Kubelet.SetNetwork(nil)
}
