package control

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
	corev1 "k8s.io/api/core/v1"
)

// Default prefix lengths of a node's pod CIDRs.
const (
	DefaultBitsIPv4 = 24
	DefaultBitsIPv6 = 64
)

// WithDefaults fills in prefix lengths left zero.
func (c Claim) WithDefaults() Claim {
	if c.BitsIPv4 == 0 {
		c.BitsIPv4 = DefaultBitsIPv4
	}
	if c.BitsIPv6 == 0 {
		c.BitsIPv6 = DefaultBitsIPv6
	}
	return c
}

// Validate checks a claim by itself. Errors name the flag that is at fault.
func (c Claim) Validate() error {
	c = c.WithDefaults()
	if c.Node == "" || c.Instance == "" {
		return errors.New("control: a claim needs a node name and an instance")
	}
	if err := Validate(&corev1.Node{ObjectMeta: NewNode(c).ObjectMeta, Spec: corev1.NodeSpec{PodCIDRs: []string{"192.0.2.0/24"}}}); err != nil {
		return err
	}
	if err := onePerFamily("--cluster-cidr", c.ClusterCIDRs); err != nil {
		return err
	}
	if err := onePerFamily("--service-cidr", c.ServiceCIDRs); err != nil {
		return err
	}
	if len(c.ClusterCIDRs) == 0 {
		return errors.New("--cluster-cidr: empty; want a prefix such as 10.244.0.0/16")
	}
	for _, p := range c.ClusterCIDRs {
		for _, q := range c.ServiceCIDRs {
			if p.Overlaps(q) {
				return fmt.Errorf("--service-cidr %s overlaps --cluster-cidr %s; want separate ranges", q, p)
			}
		}
		bits, flag := c.bits(p), "--node-cidr-size-v4"
		if p.Addr().Is6() {
			flag = "--node-cidr-size-v6"
		}
		// Two bits: network, router, a pod, and broadcast.
		if longest := p.Addr().BitLen() - 2; bits < p.Bits() || bits > longest {
			return fmt.Errorf("%s %d: want %d to %d, inside --cluster-cidr %s", flag, bits, p.Bits(), longest, p)
		}
	}
	return nil
}

func onePerFamily(flag string, ps []netip.Prefix) error {
	var seen [2]bool
	for _, p := range ps {
		i := 0
		if p.Addr().Is6() {
			i = 1
		}
		switch {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
			return fmt.Errorf("%s %s: want a prefix without host bits, such as %s", flag, p, p.Masked())
		case seen[i]:
			return fmt.Errorf("%s %s: second of its family; want at most one of each", flag, p)
		}
		seen[i] = true
	}
	return nil
}

func (c *Claim) bits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return c.BitsIPv4
	}
	return c.BitsIPv6
}

// AllocateNodeCIDRs chooses the pod CIDRs of the node that claims, given the
// nodes that exist. What the claim asks for, or its record already has, it gets
// unless another has it (*ConflictError); otherwise the first number that is free
// in every family, so that a node's prefixes look alike.
func AllocateNodeCIDRs(existing []*corev1.Node, c Claim) ([]netip.Prefix, error) {
	c = c.WithDefaults()
	var taken bart.Table[string]
	want := c.PodCIDRs
	for _, n := range existing {
		prefixes, err := NodePrefixes(n)
		if n.Name == c.Node {
			if err == nil && len(want) == 0 {
				want = prefixes
			}
			continue
		}
		for _, p := range prefixes {
			taken.Insert(p, n.Name)
		}
	}
	if len(want) > 0 {
		for _, p := range want {
			if holder, ok := overlapping(&taken, p); ok {
				return nil, &ConflictError{What: "pod CIDR " + p.String(), Holder: "Node " + holder,
					Advice: "this node was away too long; restart it with an empty state directory"}
			}
		}
		return want, nil
	}
	subnets := uint64(1) << 32
	for _, p := range c.ClusterCIDRs {
		subnets = min(subnets, 1<<min(c.bits(p)-p.Bits(), 32))
	}
	for i := range subnets {
		var got []netip.Prefix
		for _, p := range c.ClusterCIDRs {
			if s := subnetAt(p, c.bits(p), i); !taken.OverlapsPrefix(s) {
				got = append(got, s)
			}
		}
		if len(got) == len(c.ClusterCIDRs) {
			return got, nil
		}
	}
	return nil, fmt.Errorf("cluster CIDR %v: all %d node prefixes are held by %d nodes; delete those that are gone (vswitch delete node NAME) or start with a wider one",
		c.ClusterCIDRs, subnets, len(existing))
}

// CheckNode judges a Node record a user applies by the nodes that exist: it must
// not be one that vswitch runs, and its pod prefixes must be free.
func CheckNode(existing []*corev1.Node, n *corev1.Node, serviceCIDRs []netip.Prefix) error {
	if n.Annotations[AnnotationInstance] != "" {
		return invalidField(n, "metadata.annotations["+AnnotationInstance+"]", "a node that has it writes its record itself")
	}
	prefixes, err := NodePrefixes(n)
	if err != nil {
		return invalidField(n, "", "%v", err)
	}
	var taken bart.Table[string]
	for _, p := range serviceCIDRs {
		taken.Insert(p, "the service CIDR")
	}
	for _, other := range existing {
		if other.Name == n.Name {
			if other.Annotations[AnnotationInstance] != "" {
				return &ConflictError{What: "node name " + n.Name, Holder: "a node that vswitch runs", Advice: "it writes its record itself"}
			}
			continue
		}
		others, _ := NodePrefixes(other)
		for _, p := range others {
			taken.Insert(p, "Node "+other.Name)
		}
	}
	// A prefix with a node's own address in it would lead the tunnel into itself.
	for _, node := range append([]*corev1.Node{n}, existing...) {
		facts, err := NodeFactsOf(node)
		if err != nil {
			continue // it can't be reached, whatever its address
		}
		for _, a := range facts.Underlays {
			for _, p := range prefixes {
				if p.Contains(a) {
					return invalidField(n, "spec.podCIDRs", "%s holds %s, the address of Node %s; want a prefix for pods alone", p, a, node.Name)
				}
			}
		}
	}
	for _, p := range prefixes {
		if holder, ok := overlapping(&taken, p); ok {
			return &ConflictError{What: "pod CIDR " + p.String(), Holder: holder, Advice: "choose a prefix that is free"}
		}
	}
	return nil
}

// overlapping names a node that holds some of p.
func overlapping(taken *bart.Table[string], p netip.Prefix) (string, bool) {
	if _, name, ok := taken.LookupPrefixLPM(p); ok {
		return name, true
	}
	for _, name := range taken.Subnets(p) {
		return name, true
	}
	return "", false
}
