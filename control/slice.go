package control

import (
	"encoding/hex"
	"net/netip"
	"reflect"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Slice is what is kept of an EndpointSlice: what services and names need of it, and no
// more. It is an Object, which a source may hand over in an EndpointSlice's place, and is
// never changed.
//
// Of what a node of a large cluster knows slices are the most. An endpoint takes some 290
// bytes in Kubernetes' types: 96 of its own, an address as text, and 112 for a reference
// to a pod of which the UID is all that counts, and that text too. Here it is 56. Those
// that say more than most do are in a list of their own.
type Slice struct {
	metav1.ObjectMeta // without labels and annotations, of which the two below are read

	service   string // label kubernetes.io/service-name
	triggered string // annotation endpoints.kubernetes.io/last-change-trigger-time

	addressType discoveryv1.AddressType
	ports       []slicePort
	endpoints   []sliceEndpoint
	more        []sliceMore // by endpoint
}

// slicePort is a port as it came: what is not said means something else than nothing.
type slicePort struct {
	name, protocol              string
	number                      int32
	hasName, hasProtocol, hasNo bool
}

// sliceEndpoint is one endpoint. Of its addresses it has the first, as the others mean
// nothing (discovery/v1).
type sliceEndpoint struct {
	addr netip.Addr // zero: more has it as text, or there is none
	uid  [16]byte   // of the pod, if it has one
	node unique.Handle[string]
	says said
}

// said is what an endpoint says.
type said uint8

const (
	saysReady said = 1 << iota // the condition; what it is comes next
	isReady
	saysServing
	isServing
	saysTerminating
	isTerminating
	saysUID
	saysNode
)

// sliceMore is what few endpoints have.
type sliceMore struct {
	at        int // of the endpoint
	addr, uid string
	hostname  *string
	hints     *discoveryv1.EndpointHints
}

// NewSlice takes of an EndpointSlice what is used; hostnames only if names are asked for.
func NewSlice(s *discoveryv1.EndpointSlice, names bool) *Slice {
	out := &Slice{
		ObjectMeta: metav1.ObjectMeta{Namespace: shared(s.Namespace), Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion},
		service:    s.Labels[discoveryv1.LabelServiceName], triggered: s.Annotations[corev1.EndpointsLastChangeTriggerTime],
		addressType: discoveryv1.AddressType(shared(string(s.AddressType))),
	}
	if len(s.Ports) > 0 {
		out.ports = make([]slicePort, len(s.Ports))
	}
	for i := range s.Ports {
		p, in := &out.ports[i], &s.Ports[i]
		if p.hasName = in.Name != nil; p.hasName {
			p.name = shared(*in.Name)
		}
		if p.hasProtocol = in.Protocol != nil; p.hasProtocol {
			p.protocol = shared(string(*in.Protocol))
		}
		if p.hasNo = in.Port != nil; p.hasNo {
			p.number = *in.Port
		}
	}
	if len(s.Endpoints) > 0 {
		out.endpoints = make([]sliceEndpoint, len(s.Endpoints))
	}
	for i := range s.Endpoints {
		more := out.endpoints[i].take(&s.Endpoints[i], names)
		if more == (sliceMore{}) {
			continue
		}
		more.at = i
		if last := len(out.more) - 1; last >= 0 && more.hints != nil && reflect.DeepEqual(out.more[last].hints, more.hints) {
			more.hints = out.more[last].hints // those of one zone have the same
		}
		out.more = append(out.more, more)
	}
	out.more = slices.Clip(out.more)
	return out
}

// take reads an endpoint, and returns what there is no room for; zero: nothing.
func (e *sliceEndpoint) take(in *discoveryv1.Endpoint, names bool) (more sliceMore) {
	condition := func(c *bool, says, is said) {
		if c != nil {
			e.says |= says
			if *c {
				e.says |= is
			}
		}
	}
	condition(in.Conditions.Ready, saysReady, isReady)
	condition(in.Conditions.Serving, saysServing, isServing)
	condition(in.Conditions.Terminating, saysTerminating, isTerminating)
	if len(in.Addresses) > 0 {
		if e.addr = canonicalAddr(in.Addresses[0]); !e.addr.IsValid() {
			more.addr = in.Addresses[0]
		}
	}
	if in.TargetRef != nil && in.TargetRef.UID != "" {
		var ok bool
		if e.uid, ok = parseUID(string(in.TargetRef.UID)); ok {
			e.says |= saysUID
		} else {
			more.uid = string(in.TargetRef.UID)
		}
	}
	if in.NodeName != nil {
		e.node = unique.Make(*in.NodeName)
		e.says |= saysNode
	}
	if names {
		more.hostname = in.Hostname
	}
	more.hints = in.Hints
	return more
}

// Object is the EndpointSlice with what is known of it.
func (s *Slice) Object() *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: s.ObjectMeta, AddressType: s.addressType, Endpoints: make([]discoveryv1.Endpoint, len(s.endpoints))}
	if s.service != "" {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: s.service}
	}
	if s.triggered != "" {
		out.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: s.triggered}
	}
	for i := range s.ports {
		p := s.ports[i] // what is pointed to is the object's own
		var o discoveryv1.EndpointPort
		if p.hasName {
			o.Name = &p.name
		}
		if p.hasProtocol {
			o.Protocol = new(corev1.Protocol(p.protocol))
		}
		if p.hasNo {
			o.Port = &p.number
		}
		out.Ports = append(out.Ports, o)
	}
	for i, e := range s.each {
		o := &out.Endpoints[i]
		if text := e.address(); text != "" {
			o.Addresses = []string{text}
		}
		condition := func(says, is said) *bool {
			if e.says&says == 0 {
				return nil
			}
			return new(e.says&is != 0)
		}
		o.Conditions.Ready = condition(saysReady, isReady)
		o.Conditions.Serving = condition(saysServing, isServing)
		o.Conditions.Terminating = condition(saysTerminating, isTerminating)
		if uid := e.podUID(); uid != "" {
			o.TargetRef = &corev1.ObjectReference{UID: types.UID(uid)}
		}
		if e.says&saysNode != 0 {
			o.NodeName = new(e.node.Value())
		}
		if e.more != nil {
			o.Hostname, o.Hints = e.more.hostname, e.more.hints
		}
	}
	return out
}

// sliceView is an endpoint with what else it says; more is nil if that is nothing.
type sliceView struct {
	*sliceEndpoint
	more *sliceMore
}

// each goes through the endpoints.
func (s *Slice) each(yield func(int, sliceView) bool) {
	more := s.more
	for i := range s.endpoints {
		v := sliceView{sliceEndpoint: &s.endpoints[i]}
		if len(more) > 0 && more[0].at == i {
			v.more, more = &more[0], more[1:]
		}
		if !yield(i, v) {
			return
		}
	}
}

// hasAddress reports whether an endpoint has one, right or wrong.
func (v sliceView) hasAddress() bool { return v.addr.IsValid() || v.more != nil && v.more.addr != "" }

// address is the endpoint's as it was written; empty: it has none.
func (v sliceView) address() string {
	switch {
	case v.addr.IsValid():
		return v.addr.String()
	case v.more != nil:
		return v.more.addr
	}
	return ""
}

// endpointAddr reads the address, and says why no endpoint may have it.
func (v sliceView) endpointAddr(t discoveryv1.AddressType) (netip.Addr, error) {
	if v.addr.IsValid() {
		return v.addr, judgeEndpoint(t, v.addr)
	}
	return endpointAddr(t, v.address())
}

// podUID is the UID of the pod behind the endpoint; empty: it is not known.
func (v sliceView) podUID() string {
	switch {
	case v.says&saysUID != 0:
		text := formatUID(v.uid)
		return string(text[:])
	case v.more != nil:
		return v.more.uid
	}
	return ""
}

// identity is the number of who is behind the endpoint of a service.
func (v sliceView) identity(namespace, service string) uint64 {
	if v.says&saysUID != 0 {
		text := formatUID(v.uid)
		return identity(text[:], nil)
	}
	if uid := v.podUID(); uid != "" {
		return identity(uid, "")
	}
	return identity(namespace+"/"+service, v.address())
}

// nodeName is where the endpoint runs; empty: it is not known.
func (v sliceView) nodeName() string {
	if v.says&saysNode == 0 {
		return ""
	}
	return v.node.Value()
}

// conditions are as discovery/v1 says: ready and serving are true where not given,
// terminating false.
func (v sliceView) conditions() (ready, serving, terminating bool) {
	return v.says&saysReady == 0 || v.says&isReady != 0, v.says&saysServing == 0 || v.says&isServing != 0, v.says&isTerminating != 0
}

// Alike reports whether two slices say the same, in whatever version.
func (s *Slice) Alike(o *Slice) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.UID == o.UID && s.service == o.service && s.triggered == o.triggered &&
		s.addressType == o.addressType && slices.Equal(s.ports, o.ports) && slices.Equal(s.endpoints, o.endpoints) &&
		slices.EqualFunc(s.more, o.more, func(a, b sliceMore) bool { return reflect.DeepEqual(a, b) })
}

// GetObjectKind implements runtime.Object.
func (s *Slice) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. What copies share is never changed.
func (s *Slice) DeepCopyObject() runtime.Object { return new(*s) }

var _ Object = (*Slice)(nil)

// canonicalAddr is the address that a text stands for, if that is how it is written;
// else the zero address.
func canonicalAddr(text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}
	}
	var b [len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")]byte
	if string(a.AppendTo(b[:0])) != text {
		return netip.Addr{}
	}
	return a
}

const uidBytes = 36 // of the text

// parseUID reads a UID as the API server makes them (RFC 9562, in lower case).
func parseUID(text string) (uid [16]byte, ok bool) {
	if len(text) != uidBytes {
		return uid, false
	}
	var digits [32]byte
	n := 0
	for i := range len(text) {
		if text[i] == '-' || n == len(digits) {
			continue
		}
		digits[n] = text[i]
		n++
	}
	if _, err := hex.Decode(uid[:], digits[:]); err != nil {
		return [16]byte{}, false
	}
	if formatted := formatUID(uid); string(formatted[:]) != text {
		return [16]byte{}, false
	}
	return uid, true
}

func formatUID(uid [16]byte) (text [uidBytes]byte) {
	at := 0
	for i, b := range uid {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		hex.Encode(text[at:at+2], []byte{b})
		at += 2
	}
	return text
}
