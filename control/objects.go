package control

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/gaissmai/bart"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Objects is the set of objects a node has seen, and the state that follows.
//
// The state is kept, not computed on demand: every service keeps what it was last
// compiled to, changes mark what depends on them, and what is marked is compiled
// before the next look (settle.go). A pod reaches its services through an index of
// selectors by label, a service its pods through an index of pods by label, so that
// the cost of a change goes with what it touches. A test compares the outcome with
// a fresh computation after random changes.
//
// Not safe for concurrent use.
type Objects struct {
	self Self

	nodes     map[string]*nodeEntry
	leases    map[string]Object
	lingering map[string]time.Time // nodes without a lease that count as live until then
	now       time.Time            // the latest time told
	away      bool                 // the source is not reachable
	doubt     time.Time            // until then a lease that goes is only missed, not believed gone
	pods      map[Key]*podEntry
	labelled  map[labelTerm]*podList
	entries   map[objectName]*serviceEntry  // services
	selecting map[labelTerm][]*serviceEntry // each service under one label of its selector
	slices    map[Key]*Slice
	sliceOf   map[objectName][]*Slice // in any order

	nodesDirty     bool // the four below are to be computed anew
	tunnels        []Tunnel
	tunnelProblems []Problem
	underlays      map[netip.Addr]string // node by underlay address
	podPrefixes    *bart.Lite            // of all nodes

	dirty  []*serviceEntry // to be compiled anew
	claims claims
	seen   scratch

	// What Delta has to tell: the services that changed since, as they were then,
	// nil for one that was not there, and the tunnels as they were.
	changed         map[ServiceKey]*Service
	told            []Tunnel
	tunnelsCompiled bool // since told

	triggered map[objectName]time.Time // when the oldest change of a service's slices happened that is not told yet

	troubled        map[*serviceEntry]bool // with something left out
	problemsChanged bool                   // since ProblemsChanged was asked

	names      *Names // nil: nobody asks
	namesStale bool   // it may know any services that are not in the set
	namesGone  []objectName
}

type objectName struct{ namespace, name string }

// labelTerm is one label of the pods of one namespace.
type labelTerm struct{ namespace, key, value string }

type nodeEntry struct {
	record *corev1.Node
	view   nodeView
	err    error
}

// serviceEntry is a service and what it was last compiled to.
type serviceEntry struct {
	name     objectName
	record   *corev1.Service // nil: deleted; the entry goes when the set is settled
	dirty    bool
	ports    []*port
	problems []Problem
	nodes    []string // sorted; those whose liveness or zone was looked at
	outside  bool     // its outside addresses depend on which nodes there are
	term     labelTerm
}

// Problem is something an object asks for that is not done, and why.
type Problem struct {
	Object Key
	Reason string
}

// NewObjects makes an empty set.
func NewObjects(self Self) *Objects {
	return &Objects{
		self:        self,
		podPrefixes: new(bart.Lite),
		nodes:       map[string]*nodeEntry{},
		leases:      map[string]Object{},
		lingering:   map[string]time.Time{},
		pods:        map[Key]*podEntry{},
		labelled:    map[labelTerm]*podList{},
		entries:     map[objectName]*serviceEntry{},
		selecting:   map[labelTerm][]*serviceEntry{},
		slices:      map[Key]*Slice{},
		sliceOf:     map[objectName][]*Slice{},
		claims:      newClaims(),
		changed:     map[ServiceKey]*Service{},
		triggered:   map[objectName]time.Time{},
		troubled:    map[*serviceEntry]bool{},
	}
}

// Reset replaces the whole set by a full list. A node that was live until now and
// has no lease in the list stays live for LeaseGrace. What is told next is the
// difference to what was told last, as after any other change.
func (o *Objects) Reset(all []Object, now time.Time) {
	o.Advance(now)
	old := *o
	*o = *NewObjects(old.self)
	o.now, o.away, o.doubt, o.nodesDirty = old.now, old.away, old.doubt, true
	o.names, o.namesStale = old.names, true
	o.changed, o.told, o.problemsChanged = old.changed, old.told, true
	for _, e := range old.entries {
		for _, p := range e.ports {
			if _, noted := o.changed[p.key]; !noted && p.final != nil {
				o.changed[p.key] = p.final
			}
		}
	}
	for _, obj := range all {
		o.Put(obj)
	}
	clear(o.triggered)
	for name := range o.nodes {
		if _, leased := o.leases[name]; leased {
			continue
		}
		if until, ok := old.lingering[name]; ok {
			o.lingering[name] = until
		} else if _, was := old.leases[name]; was {
			o.lingering[name] = now.Add(LeaseGrace)
		}
	}
}

// Put adds or replaces one object.
func (o *Objects) Put(obj Object) {
	key := KeyOf(obj)
	switch obj := obj.(type) {
	case *corev1.Node:
		o.putNode(obj)
	case *corev1.Pod:
		o.removePod(key)
		o.addPod(obj)
	case *corev1.Service:
		o.putService(obj)
	case *discoveryv1.EndpointSlice:
		o.putSlice(key, NewSlice(obj, true))
	case *Slice:
		o.putSlice(key, obj)
	default:
		if key.Kind == KindLease {
			o.watchLive(key.Name, func() {
				delete(o.lingering, key.Name)
				o.leases[key.Name] = obj
			})
		}
	}
}

// Delete removes one object, if it is there.
func (o *Objects) Delete(key Key) {
	switch key.Kind {
	case KindNode:
		o.deleteNode(key.Name)
	case KindLease:
		o.leaseEnded(key.Name)
	case KindPod:
		o.removePod(key)
	case KindService:
		if e := o.entries[objectName{key.Scope, key.Name}]; e != nil {
			o.unselect(e)
			e.record = nil
			o.markDirty(e)
		}
		if o.names != nil {
			o.namesGone = append(o.namesGone, objectName{key.Scope, key.Name})
		}
	case KindEndpointSlice:
		o.removeSlice(key)
	}
}

// List returns the objects of a kind, sorted by key.
func (o *Objects) List(kind Kind) []Object { return inOrder(o.list(kind)) }

// All returns every object, sorted by kind and key.
func (o *Objects) All() []Object {
	var out []Object
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, o.List(kind)...)
	}
	return out
}

// kept is an object as the set keeps it; the zero value is none.
type kept struct {
	obj Object     // of all kinds but pods; a *Slice of an EndpointSlice
	pod *podRecord // of a pod
}

// object is the object in Kubernetes' own types.
func (k kept) object() Object {
	o := k.stored()
	if s, ok := o.(*Slice); ok {
		return s.Object()
	}
	return o
}

// stored is the object as Encode takes it; nil of none.
func (k kept) stored() Object {
	if k.pod != nil {
		return k.pod.object()
	}
	return k.obj
}

// keyed is one with its key, which takes a while to make of a pod.
type keyed struct {
	Key
	kept
}

// list returns the objects of a kind in any order.
func (o *Objects) list(kind Kind) []keyed {
	var out []keyed
	switch kind {
	case KindNode:
		for name, e := range o.nodes {
			out = append(out, keyed{Key{kind, "", name}, kept{obj: e.record}})
		}
	case KindLease:
		for name, l := range o.leases {
			out = append(out, keyed{Key{kind, "", name}, kept{obj: l}})
		}
	case KindPod:
		for k, p := range o.pods {
			out = append(out, keyed{k, kept{pod: p.podRecord}})
		}
	case KindService:
		for name, e := range o.entries {
			if e.record != nil {
				out = append(out, keyed{Key{kind, name.namespace, name.name}, kept{obj: e.record}})
			}
		}
	case KindEndpointSlice:
		for k, s := range o.slices {
			out = append(out, keyed{k, kept{obj: s}})
		}
	}
	return out
}

// everything returns all objects in any order.
func (o *Objects) everything() []keyed {
	out := make([]keyed, 0, len(o.nodes)+len(o.leases)+len(o.pods)+len(o.entries)+len(o.slices))
	for kind := range kinds {
		out = append(out, o.list(kind)...)
	}
	return out
}

// get returns one object, or none.
func (o *Objects) get(k Key) (out kept) {
	switch k.Kind {
	case KindNode:
		if e := o.nodes[k.Name]; e != nil {
			out.obj = e.record
		}
	case KindLease:
		if l, ok := o.leases[k.Name]; ok {
			out.obj = l
		}
	case KindPod:
		if e := o.pods[k]; e != nil {
			out.pod = e.podRecord
		}
	case KindService:
		if e := o.entries[objectName{k.Scope, k.Name}]; e != nil && e.record != nil {
			out.obj = e.record
		}
	case KindEndpointSlice:
		if s := o.slices[k]; s != nil {
			out.obj = s
		}
	}
	return out
}

// inOrder sorts objects by key.
func inOrder(objs []keyed) []Object {
	slices.SortFunc(objs, func(a, b keyed) int { return a.Key.compare(b.Key) })
	out := make([]Object, len(objs))
	for i := range objs {
		out[i] = objs[i].object()
	}
	return out
}

func (o *Objects) putNode(n *corev1.Node) {
	e, old := &nodeEntry{record: n}, o.nodes[n.Name]
	e.view, e.err = viewNode(n)
	o.watchLive(n.Name, func() { o.nodes[n.Name] = e })
	if old != nil && old.same(e) {
		return // a heartbeat
	}
	o.nodesDirty = true
	if old == nil && e.view.zone != "" || old != nil && old.view.zone != e.view.zone {
		o.zoneChanged(n.Name)
	}
}

func (o *Objects) deleteNode(name string) {
	e := o.nodes[name]
	if e == nil {
		return
	}
	o.watchLive(name, func() {
		delete(o.nodes, name)
		delete(o.lingering, name)
	})
	o.nodesDirty = true
	if e.view.zone != "" {
		o.zoneChanged(name)
	}
}

// same reports whether two records of a node lead to the same.
func (e *nodeEntry) same(o *nodeEntry) bool {
	return fmt.Sprint(e.err) == fmt.Sprint(o.err) && reflect.DeepEqual(e.view, o.view) &&
		e.record.CreationTimestamp.Equal(&o.record.CreationTimestamp)
}

// zoneChanged has compiled anew what depends on where a node is: of this one, all
// that hints can bear on.
func (o *Objects) zoneChanged(node string) {
	if node != o.self.Node {
		o.dirtyBehind(node)
		return
	}
	for _, e := range o.entries {
		o.markDirty(e)
	}
}
