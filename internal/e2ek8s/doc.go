// Package e2ek8s tests vswitch as the network of a Kubernetes cluster: the real API
// server, controllers and etcd, the built binaries and the real plugin, real objects
// and unmodified programs. It holds nothing but tests; `make e2e-k8s` runs them.
//
// TestCluster is one cluster of three nodes and a list of promises that are kept on
// it, one after the other; a test that needs a cluster of another kind makes its own.
// What plays the kubelet and the scheduler is vswitch/internal/lab/cluster.
package e2ek8s
