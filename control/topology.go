package control

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Which endpoints take a new connection on this node is decided here, for two
// sets: the one where the traffic policy is Cluster and the one where it is
// Local. The rules are kube-proxy's (pkg/proxy/topology.go of 1.37), and
// TestPolicies is the table of them:
//
//	Cluster: those that are ready and that hints allow on this node; with none
//	         ready anywhere, those that terminate but still serve (KEP-1669).
//	Local:   those of this node that are ready; with none ready here, those of
//	         this node that terminate but still serve. Hints don't count.
//
// Hints count if all ready endpoints carry them and some of them are for this
// node, or else for its zone. They come with a slice; for the pods of a selector
// they are what trafficDistribution leads Kubernetes' controller to write.

// hint is what an endpoint's topology hints say to this node.
type hint uint8

const (
	hintNode hint = 1 << iota // it has hints for nodes
	hintHere                  // for this one too
	hintZone                  // it has hints for zones
	hintNear                  // for this node's too
)

// hintsOf reads the hints of a slice's endpoint.
func (o *Objects) hintsOf(h *discoveryv1.EndpointHints) hint {
	if h == nil {
		return 0
	}
	var out hint
	for _, n := range h.ForNodes {
		out |= hintNode
		if n.Name == o.self.Node {
			out |= hintHere
		}
	}
	zone := o.zone(o.self.Node)
	for _, z := range h.ForZones {
		out |= hintZone
		if z.Name == zone && zone != "" {
			out |= hintNear
		}
	}
	return out
}

// hintsFor are the hints that follow from a service's trafficDistribution for an
// endpoint of a node.
func (o *Objects) hintsFor(s *corev1.ServiceSpec, node string) hint {
	if s.TrafficDistribution == nil || node == "" {
		return 0
	}
	var out hint
	if *s.TrafficDistribution == corev1.ServiceTrafficDistributionPreferSameNode {
		out |= hintNode
		if node == o.self.Node {
			out |= hintHere
		}
	}
	if zone := o.zone(node); zone != "" {
		out |= hintZone
		if zone == o.zone(o.self.Node) {
			out |= hintNear
		}
	}
	return out
}

// zone is where a node is; empty if it doesn't say.
func (o *Objects) zone(node string) string {
	if e := o.nodes[node]; e != nil && e.view.zone != "" {
		return e.view.zone
	}
	if node == o.self.Node {
		return o.self.Zone
	}
	return ""
}

// categorise fills in which of a port's endpoints take new connections on this
// node. A set that the port's policies never ask for stays empty, so that an
// endpoint in neither is known to get none.
func (o *Objects) categorise(s *Service, es []candidate) {
	outside := s.NodePort != 0 || len(s.LoadBalancerIPs)+len(s.ExternalIPs) > 0
	if !s.InternalLocal || outside { // pods use outside addresses too, always by the policy Cluster
		want := preference(es)
		choose(es, func(c *candidate) *bool { return &c.Cluster }, func(c *candidate) bool { return c.hints&want == want }, everywhere)
	}
	if s.InternalLocal || s.ExternalLocal && outside {
		here := func(c *candidate) bool { return c.Node == o.self.Node }
		choose(es, func(c *candidate) *bool { return &c.Local }, here, here)
	}
}

func everywhere(*candidate) bool { return true }

// choose sets a flag of the ready endpoints that may, or, if there are none, of
// those that fall back and serve while they terminate.
func choose(es []candidate, flag func(*candidate) *bool, may, fallBack func(*candidate) bool) {
	found := false
	for i := range es {
		if c := &es[i]; c.Ready && may(c) {
			*flag(c), found = true, true
		}
	}
	if found {
		return
	}
	for i := range es {
		if c := &es[i]; !c.Ready && c.Serving && c.Terminating && fallBack(c) {
			*flag(c) = true
		}
	}
}

// preference is the hint that ready endpoints must carry to be chosen: for this
// node, for its zone, or none.
func preference(es []candidate) hint {
	any, all := hint(0), ^hint(0)
	for i := range es {
		if es[i].Ready {
			any |= es[i].hints
			all &= es[i].hints
		}
	}
	switch {
	case all&hintNode != 0 && any&hintHere != 0:
		return hintHere
	case all&hintZone != 0 && any&hintNear != 0:
		return hintNear
	}
	return 0
}

// knownDistributions are the values of spec.trafficDistribution; PreferClose is
// an older name of PreferSameZone.
var knownDistributions = []string{
	corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode,
	corev1.ServiceTrafficDistributionPreferClose,
}

func knownDistribution(s string) bool { return slices.Contains(knownDistributions, s) }
