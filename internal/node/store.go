package node

import (
	"context"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/control/embedded"
	"vswitch/control/etcd"
	"vswitch/control/kube"
	"vswitch/internal/attach"
	"vswitch/internal/config"
	"vswitch/internal/nodeapi"
)

// controlPlane is where the cluster's objects come from and where this node says what it
// is. Its methods may be called from any goroutine.
type controlPlane interface {
	attach.Publisher // takes this node's pods
	nodeapi.Objects  // for `vswitch apply`

	// ClaimNode makes or confirms this node's hold on its name and pod CIDRs. It
	// tries until ctx ends while the store is away; a *control.ConflictError or a
	// *control.MismatchError is final. Until it returns Run publishes nothing.
	ClaimNode(ctx context.Context, want control.Claim) (control.Claim, error)
	// LoadPods gives the interfaces that exist on this node, once, at start.
	LoadPods(pods []*corev1.Pod)
	// Run tells sink what the objects are and come to be, until ctx ends: its error
	// is then returned. Any other says that this node's claim stands no more.
	Run(ctx context.Context, sink control.Sink) error
}

var (
	_ controlPlane = (*etcd.Store)(nil)
	_ controlPlane = (*kube.Source)(nil)
)

// openStore opens the control plane. It comes after the controller, which knows what
// there was before.
func (n *node) openStore() error {
	if n.cfg.Store.Kubernetes {
		return n.openKubernetes()
	}
	return n.openEtcd()
}

func (n *node) openKubernetes() error {
	s, err := kube.New(kube.Config{
		Kubeconfig: n.cfg.Store.Kubeconfig, APIServer: n.cfg.Store.APIServer, Node: n.cfg.Node,
		Names: len(n.cfg.DNS.Addrs) > 0, Known: n.controller.Kept, Log: n.log,
	})
	if err != nil {
		return err
	}
	n.store, n.tell = s, s.Tell
	n.onClose(s.Close)
	n.onClose(n.stopTasks) // they use the store
	return nil
}

// tellProblem tells those who look at an object where they do what is wrong with it,
// if the control plane has a way to.
func (n *node) tellProblem(p control.Problem) {
	if n.tell != nil {
		n.tell(p)
	}
}

func (n *node) openEtcd() error {
	endpoints := n.cfg.Store.URLs
	tls := etcd.TLSFiles{CA: n.cfg.Store.CA, Cert: n.cfg.Store.Cert, Key: n.cfg.Store.Key}
	if _, err := tls.Client(); err != nil { // ahead of an embedded store, which would only end and end again
		return err
	}
	for _, u := range n.cfg.Store.InTheClear() {
		n.log.Warn("the store is reached in clear text: whoever is on the way there owns the cluster", "addr", u)
	}
	if n.cfg.Store.Embedded() {
		if err := n.startEmbedded(); err != nil {
			return err
		}
		endpoints = []string{embedded.ClientURL(n.state.file(storeDir))}
	}
	s, err := etcd.New(etcd.Config{
		Endpoints:    endpoints,
		TLS:          tls,
		Node:         n.cfg.Node,
		ServiceCIDRs: n.cfg.ServiceCIDR,

		LoadBalancerCIDRs: n.cfg.LBCIDR,
		Log:               n.log,
	})
	if err != nil {
		return err
	}
	n.store = s
	n.onClose(s.Close)
	n.onClose(n.stopTasks) // they use the store
	return nil
}

// EmbeddedStore is the store that a node of this configuration runs; nil: none.
func EmbeddedStore(cfg *config.Config) *embedded.Config {
	s := &cfg.Store
	if !s.Embedded() {
		return nil
	}
	return &embedded.Config{
		Dir: filepath.Join(cfg.StateDir, storeDir), ListenClient: s.ListenClient,
		CA: s.CA, Cert: s.Cert, Key: s.Key, Insecure: s.Insecure, Confine: string(cfg.Confine),
	}
}

// startEmbedded has the store run: the keeper does, or without one this process.
func (n *node) startEmbedded() error {
	if n.opt.Keeper != nil {
		return n.opt.Keeper.StartStore()
	}
	s, err := embedded.Start(embedded.SupervisorConfig{Store: *EmbeddedStore(&n.cfg), Log: n.log})
	if err != nil {
		return err
	}
	n.onClose(func() error { s.Close(); return nil })
	return nil
}
