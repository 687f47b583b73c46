package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/libcni"

	"vswitch/internal/lab"
)

// Network gives pods of a node their network, as a container runtime's does.
type Network interface {
	// Attach makes a namespace that is attached; an error leaves nothing.
	Attach(ctx context.Context, spec lab.PodSpec) (*Attachment, error)
}

// Attachment is the network of one pod.
type Attachment struct {
	Space *lab.Namespace
	IPs   []netip.Addr
	// Detach undoes Attach, the namespace included. After an error it is called again.
	Detach func(ctx context.Context) error
}

// plugin is the node's CNI plugin, called through libcni.
type plugin struct{ node *lab.Node }

func (n plugin) Attach(ctx context.Context, spec lab.PodSpec) (*Attachment, error) {
	p, err := n.node.NewPod(spec)
	if err != nil {
		return nil, err
	}
	if err := p.Add(ctx); err != nil {
		// A runtime calls DEL for an ADD that failed.
		return nil, errors.Join(err, p.Delete(ctx))
	}
	a := &Attachment{Space: p.Namespace, Detach: p.Delete}
	for _, ip := range p.Result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		a.IPs = append(a.IPs, addr.Unmap())
	}
	return a, nil
}

// SetNetwork makes pods that start from now on use another network than the CNI
// plugin vswitch-cni; nil: the plugin again.
func (k *Kubelet) SetNetwork(n Network) {
	if n == nil {
		n = plugin{k.node}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.network = n
}

// noPower is the network of a node that is off.
type noPower struct{}

func (noPower) Attach(context.Context, lab.PodSpec) (*Attachment, error) {
	return nil, errors.New("the node is off")
}

// PowerOff ends the node's pods, those of its own network excepted, as a loss of power does: their processes and
// namespaces are gone, and no plugin was told. It returns when they are. The
// namespace that stands for the node, and the kubelet, stay.
func (k *Kubelet) PowerOff(ctx context.Context) error {
	k.SetNetwork(noPower{})
	k.mu.Lock()
	var pods []*pod
	for _, p := range k.pods {
		if latest, _ := p.look(); !latest.Spec.HostNetwork {
			pods = append(pods, p)
		}
	}
	k.mu.Unlock()
	for _, p := range pods {
		p.mu.Lock()
		if n := p.net; n != nil {
			p.net = &Attachment{Space: n.Space, IPs: n.IPs, Detach: func(context.Context) error { return n.Space.Close() }}
		}
		p.anew = true
		p.mu.Unlock()
		p.poke()
	}
	for _, p := range pods {
		err := retry(ctx, "power off "+k.node.Host, func() error {
			if _, err := p.namespace(); err == nil {
				return errors.New("a pod has its network still")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// PowerOn begins as a runtime does on a node that booted: it has the plugin remove
// what it knows of attachments, none of which is left, and then makes the pods' again.
func (k *Kubelet) PowerOn(ctx context.Context) error {
	list, err := k.node.NetworkConfig(lab.PodSpec{CNIVersion: "1.1.0"})
	if err != nil {
		return err
	}
	if err := k.node.CNI().GCNetworkList(ctx, list, &libcni.GCArgs{}); err != nil {
		return fmt.Errorf("cluster: CNI GC on %s: %w", k.node.Host, err)
	}
	k.SetNetwork(nil)
	return nil
}
