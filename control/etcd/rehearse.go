package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"vswitch/control"
)

// rehearse judges objects as applying them one after the other would, each by the
// store and those before it, and writes nothing.
func (s *Store) rehearse(ctx context.Context, objs []control.Object) error {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.kindPrefix(control.KindService), clientv3.WithPrefix()),
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return s.wrap(err)
	}
	services := control.NewServiceAllocator(s.cfg.ServiceCIDRs, decodeAll[*corev1.Service](s, kvsOf(r, 0)))
	nodes := decodeAll[*corev1.Node](s, kvsOf(r, 1))
	for _, o := range objs {
		switch o := o.DeepCopyObject().(type) {
		case *corev1.Service:
			err = services.Allocate(o)
		case *corev1.Node:
			err = control.CheckNode(nodes, o, s.cfg.ServiceCIDRs)
			nodes = replaceNode(nodes, o)
		case *discoveryv1.EndpointSlice:
			err = s.endpointRules(nodes).CheckEndpoints(o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replaceNode puts n in the place of the node of its name, or behind them all.
func replaceNode(nodes []*corev1.Node, n *corev1.Node) []*corev1.Node {
	for i := range nodes {
		if nodes[i].Name == n.Name {
			nodes[i] = n
			return nodes
		}
	}
	return append(nodes, n)
}

// endpointRules knows which addresses are nodes' and services', where no endpoint
// may be.
func (s *Store) endpointRules(nodes []*corev1.Node) *control.Objects {
	o := control.NewObjects(control.Self{ServiceCIDRs: s.cfg.ServiceCIDRs})
	for _, n := range nodes {
		o.Put(n)
	}
	return o
}
