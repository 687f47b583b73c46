package control

import (
	"cmp"
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is one Kubernetes object: *corev1.Node, *coordinationv1.Lease,
// *corev1.Pod, *corev1.Service or *discoveryv1.EndpointSlice, or, from a source, *Slice
// in the last one's place. Once handed over it is shared and read only.
type Object interface {
	runtime.Object
	metav1.Object
}

// Kind names the kinds of object a source delivers.
type Kind uint8

// Kinds. Node, Service and EndpointSlice can be applied by a user; pods come
// from the CNI plugin, leases from the nodes themselves.
const (
	KindNode Kind = iota + 1
	KindLease
	KindPod
	KindService
	KindEndpointSlice
)

// kinds lists for every kind what it is called: in its objects, on the command
// line, and in the store's keys.
var kinds = map[Kind]struct{ name, apiVersion, plural string }{
	KindNode:          {"Node", "v1", "nodes"},
	KindLease:         {"Lease", "coordination.k8s.io/v1", "leases"},
	KindPod:           {"Pod", "v1", "pods"},
	KindService:       {"Service", "v1", "services"},
	KindEndpointSlice: {"EndpointSlice", "discovery.k8s.io/v1", "endpointslices"},
}

// String is the kind as Kubernetes writes it, such as "EndpointSlice".
func (k Kind) String() string {
	if n, ok := kinds[k]; ok {
		return n.name
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// APIVersion is the group and version that belong to the kind.
func (k Kind) APIVersion() string { return kinds[k].apiVersion }

// Plural is the lower-case plural, such as "endpointslices".
func (k Kind) Plural() string { return kinds[k].plural }

// ParseKind reads a kind as typed on a command line: singular or plural, in any
// case; "endpoints" is taken for EndpointSlice.
func ParseKind(s string) (Kind, error) {
	switch l := strings.ToLower(s); l {
	case "endpoints", "endpoint":
		return KindEndpointSlice, nil
	default:
		for k, n := range kinds {
			if l == strings.ToLower(n.name) || l == n.plural {
				return k, nil
			}
		}
	}
	return 0, fmt.Errorf("kind %q is not known; want node, pod, service or endpointslice", s)
}

// KindOf tells the kind of o, 0 if it is none of ours.
func KindOf(o Object) Kind {
	switch o.(type) {
	case *corev1.Node:
		return KindNode
	case *coordinationv1.Lease:
		return KindLease
	case *corev1.Pod:
		return KindPod
	case *corev1.Service:
		return KindService
	case *discoveryv1.EndpointSlice, *Slice:
		return KindEndpointSlice
	}
	return 0
}

// newObject makes an empty object of kind k, nil if there is no such kind.
func newObject(k Kind) Object {
	switch k {
	case KindNode:
		return new(corev1.Node)
	case KindLease:
		return new(coordinationv1.Lease)
	case KindPod:
		return new(corev1.Pod)
	case KindService:
		return new(corev1.Service)
	case KindEndpointSlice:
		return new(discoveryv1.EndpointSlice)
	}
	return nil
}

// Key names one object in a set.
//
// A pod is keyed by where its interface is, not by its name: Scope is the node
// and Name "container/interface". Two pods of one name exist for a moment
// whenever one is replaced, and each must come and go alone. For the other kinds
// Scope is the namespace, empty for nodes and leases.
type Key struct {
	Kind  Kind
	Scope string
	Name  string
}

// KeyOf is the key of o.
func KeyOf(o Object) Key {
	k := Key{Kind: KindOf(o), Scope: o.GetNamespace(), Name: o.GetName()}
	switch o := o.(type) {
	case *corev1.Node, *coordinationv1.Lease:
		k.Scope = ""
	case *corev1.Pod:
		if o.Annotations[AnnotationContainerID] == "" {
			break // not a vswitch node's: namespace and name it is
		}
		return PodKey(o.Spec.NodeName, o.Annotations[AnnotationContainerID], o.Annotations[AnnotationInterface])
	}
	return k
}

// PodKey is the key of the pod interface ifname of a container on node.
func PodKey(node, containerID, ifname string) Key {
	return Key{Kind: KindPod, Scope: node, Name: containerID + "/" + ifname}
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Scope, o.Scope), cmp.Compare(k.Name, o.Name))
}

// String reads "Service default/web", as used in messages.
func (k Key) String() string {
	if k.Scope == "" {
		return k.Kind.String() + " " + k.Name
	}
	return k.Kind.String() + " " + k.Scope + "/" + k.Name
}
