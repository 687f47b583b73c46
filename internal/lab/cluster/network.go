package cluster

import (
	"context"
	"errors"
	"net/netip"

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
