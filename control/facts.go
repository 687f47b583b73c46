package control

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// NodeFactsOf reads what a Node record publishes for others to reach the node by,
// of a flannel node's two devices the first VNI and MAC. The error names the
// annotation or field that can't be read.
func NodeFactsOf(n *corev1.Node) (NodeFacts, error) {
	v, err := viewNode(n)
	if err != nil {
		return NodeFacts{}, err
	}
	var f NodeFacts
	for i, d := range v.devices {
		if i == 0 {
			f.UDPPorts, f.VNI, f.VTEPMAC, f.IngressVNI = d.ports, d.vni, d.mac, d.ingressVNI
		}
		for _, a := range d.underlays {
			if !slices.Contains(f.Underlays, a) {
				f.Underlays = append(f.Underlays, a)
			}
		}
	}
	return f, nil
}
