// Package attach keeps the attachments of a node: the pods' interfaces, from the
// moment addresses are leased until they are free again.
//
// It knows no wire protocol and opens no socket: the API (internal/nodeapi) and
// the descriptor socket call it, and it drives the switch, the FIB, the address
// leases and the published pods through the interfaces below. Records survive the
// daemon in a file, so that queues lost with it can be passed again.
//
// The life of an attachment:
//
//	            Add                 Attach
//	(nothing) -------> pending ---------------> attached
//	    ^                 |  Expire                |  the device died,
//	    |                 v                        v  or the daemon did
//	    +-----------------+<------ Delete ----- detached
//	                        GC, namespace gone     |
//	                                               +--> attached, by Attach
//
// A pending or detached attachment has a token, with which its queues come over
// the descriptor socket; it carries no traffic. Its addresses stay leased.
package attach

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/tap"
	"vswitch/vswitch"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/frame"
)

// Key is the identity of an attachment, as in the CNI specification: one
// interface of one container on one network.
type Key struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	Ifname      string `json:"ifname"`
}

// String reads "container/eth0", as used in messages.
func (k Key) String() string { return k.ContainerID + "/" + k.Ifname }

// Pod is whose attachment it is.
type Pod struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	UID       string            `json:"uid,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Request asks for an attachment.
type Request struct {
	Key
	Netns string // path of the pod's network namespace; never opened
	Pod   Pod
	Ports []PortMapping // of the host, that lead to the pod
	Host  bool          // the namespace has a network of its own: a host's; Network is HostNetwork
}

// HostNetwork is the network of hosts' attachments, and of no others: a runtime that
// clears up its own must not take the host's interface away.
const HostNetwork = "host"

// PortMapping is a port of the host that leads to a pod.
type PortMapping struct {
	HostIP   netip.Addr       `json:"hostIP,omitzero"` // the one it is for; zero: all
	HostPort uint16           `json:"hostPort"`
	PodPort  uint16           `json:"podPort"`
	Protocol control.Protocol `json:"protocol"` // TCP or UDP
}

func (p PortMapping) String() string { return fmt.Sprintf("%d/%v", p.HostPort, p.Protocol) }

// State is where an attachment is in its life.
type State uint8

// States.
const (
	Pending  State = iota + 1 // addresses are leased, no queue has come yet
	Attached                  // its port is open
	Detached                  // its queues are lost; a token is out for new ones
)

func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Attached:
		return "attached"
	case Detached:
		return "detached"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Attachment is one as others see it.
type Attachment struct {
	Key
	Netns    string
	Pod      Pod
	Ports    []PortMapping
	Host     bool
	Addrs    []netip.Addr // one a family at most
	MAC      frame.MAC
	MTUBytes int
	Queues   int
	Plain    bool         // the TAP has no virtio-net header
	Features tap.Features // of its queues, once they came
	State    State
	Token    string // while Pending or Detached
	Problem  string // while Detached: why, and what helps
	Port     string // name of the switch port
}

// Leases hands out pod addresses and remembers to whom; *ipam.Pool does.
type Leases interface {
	// Lease gives the holder one address of each family of the node's pod CIDRs,
	// always the same until Release. errors.Is ipam.ErrExhausted: none is free.
	Lease(holder string) ([]netip.Addr, error)
	// Hold leases the addresses of a pod that is known to run. It is refused if
	// another holds one.
	Hold(holder string, addrs []netip.Addr) error
	// Release frees what the holder has; to have nothing is no error.
	Release(holder string)
	// Holders lists who has a lease.
	Holders() []string
}

// Ports is the switch.
type Ports interface {
	AddPort(vswitch.PortConfig) (uint32, error)
	RemovePort(uint32) error
}

// Routes is the FIB's host table.
type Routes interface {
	SetHost(netip.Addr, fib.NextHop)
	DeleteHost(netip.Addr) bool
}

// HostPorts opens ports of the host that lead to pods.
type HostPorts interface {
	// Open opens all of an attachment's port mappings, or none.
	Open(*Attachment) error
	// Close closes them; those that aren't open are no error.
	Close(*Attachment)
}

// Publisher tells the cluster of this node's pods. It never waits.
type Publisher interface {
	PublishPod(*corev1.Pod)
	UnpublishPod(control.Key)
}

// OpenQueue makes a queue of a descriptor, which it owns once it succeeds.
type OpenQueue func(fd int, f tap.Features) (vswitch.Queue, error)

// Errors to tell apart.
var (
	ErrExists   = errors.New("the attachment exists")
	ErrNotFound = errors.New("no such attachment")
	ErrNotReady = errors.New("the node has no pod CIDR yet")
	ErrPortUsed = errors.New("the port of the host leads to another pod")
	ErrToken    = errors.New("the token names no attachment that waits for queues")
)

// InvalidError names the field of a request that can't be, and what would be right.
type InvalidError struct {
	Field, Value, Want string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s %q: want %s", e.Field, e.Value, e.Want)
}
