package control

import (
	"errors"
	"fmt"
	"net/netip"

	"vswitch/vswitch/frame"
)

// Sink takes what a source sees. The Controller is one. A source never makes two
// calls at once, and a call returns quickly.
type Sink interface {
	// Reset replaces everything: a full list, first or after deltas were missed.
	Reset(all []Object)
	// Update applies deltas that follow the last Reset without a gap.
	Update(puts []Object, deletes []Key)
	// Reachable tells when the source is lost and when it is back. While it is
	// lost nothing that it said is doubted.
	Reachable(bool)
}

// Claim is a node's hold on its name and on pod CIDRs. It outlives the node's
// lease. The daemon keeps the one it got on disk.
type Claim struct {
	Node     string         `json:"node"`
	Instance string         `json:"instance"` // unique to this state directory: tells two machines of one name apart
	PodCIDRs []netip.Prefix `json:"podCIDRs"` // wanted again, or empty: any; then those that were got

	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"` // one for each family at most; the same on every node
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	BitsIPv4     int            `json:"bitsIPv4"` // prefix length of a node's CIDR; 0: 24
	BitsIPv6     int            `json:"bitsIPv6"` // 0: 64

	Facts NodeFacts `json:"facts"`
}

// NodeFacts is what a vswitch node publishes of itself so that others reach it.
type NodeFacts struct {
	Underlays []netip.Addr `json:"underlays"`
	UDPPorts  []uint16     `json:"udpPorts"`
	VNI       uint32       `json:"vni"`
	VTEPMAC   frame.MAC    `json:"vtepMAC"`
	// IngressVNI is the identifier by which the node takes frames from outside the
	// cluster; 0: it takes none.
	IngressVNI uint32 `json:"ingressVNI,omitempty"`
	// Zone is the node's label topology.kubernetes.io/zone; empty: none.
	Zone string `json:"zone,omitempty"`
}

// Errors of a store of objects, for errors.Is.
var (
	ErrNotFound    = errors.New("not found")
	ErrUnavailable = errors.New("the store does not answer")
)

// ConflictError says that something wanted is held by another. It will not go
// away by itself.
type ConflictError struct {
	What   string // such as `clusterIP 10.96.0.10`
	Holder string // such as `Service kube-system/dns`
	Advice string // what would be right; may be empty
}

func (e *ConflictError) Error() string {
	s := e.What + " is held by " + e.Holder
	if e.Advice != "" {
		s += ": " + e.Advice
	}
	return s
}

// MismatchError says that this node is configured otherwise than its cluster.
type MismatchError struct {
	Flag          string
	Value, Common string // this node's and the cluster's
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s %s: the cluster has %s; want the same on every node", e.Flag, e.Value, e.Common)
}

// InvalidError says what is wrong with an object and what would be right.
type InvalidError struct {
	Object Key
	Field  string // path such as spec.ports[0].port; empty: the whole
	Reason string
}

func (e *InvalidError) Error() string {
	s := e.Object.String() + ": "
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Reason
}
