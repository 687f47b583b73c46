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
	slices    map[Key]*discoveryv1.EndpointSlice
	sliceOf   map[objectName]map[Key]*discoveryv1.EndpointSlice

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
	changed map[ServiceKey]*Service
	told    []Tunnel

	troubled        map[*serviceEntry]bool // with something left out
	problemsChanged bool                   // since ProblemsChanged was asked

	names      *Names // nil: nobody asks
	namesStale bool   // it may know services that are not in the set
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
		slices:      map[Key]*discoveryv1.EndpointSlice{},
		sliceOf:     map[objectName]map[Key]*discoveryv1.EndpointSlice{},
		claims:      newClaims(),
		changed:     map[ServiceKey]*Service{},
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
		o.addPod(key, obj)
	case *corev1.Service:
		o.putService(obj)
	case *discoveryv1.EndpointSlice:
		o.removeSlice(key)
		o.addSlice(key, obj)
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
		o.namesStale = true
	case KindEndpointSlice:
		o.removeSlice(key)
	}
}

// List returns the objects of a kind, sorted by key.
func (o *Objects) List(kind Kind) []Object { return inOrder(o.keyed(kind)) }

// All returns every object, sorted by kind and key.
func (o *Objects) All() []Object {
	var out []Object
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, o.List(kind)...)
	}
	return out
}

// keyedObject is an object with its key, which takes a while to make of a pod.
type keyedObject struct {
	Key
	Object
}

// keyed returns the objects of a kind in any order.
func (o *Objects) keyed(kind Kind) []keyedObject {
	var out []keyedObject
	switch kind {
	case KindNode:
		for name, e := range o.nodes {
			out = append(out, keyedObject{Key{kind, "", name}, e.record})
		}
	case KindLease:
		for name, l := range o.leases {
			out = append(out, keyedObject{Key{kind, "", name}, l})
		}
	case KindPod:
		for k, p := range o.pods {
			out = append(out, keyedObject{k, p.pod})
		}
	case KindService:
		for name, e := range o.entries {
			if e.record != nil {
				out = append(out, keyedObject{Key{kind, name.namespace, name.name}, e.record})
			}
		}
	case KindEndpointSlice:
		for k, s := range o.slices {
			out = append(out, keyedObject{k, s})
		}
	}
	return out
}

// inOrder sorts objects by key.
func inOrder(objs []keyedObject) []Object {
	slices.SortFunc(objs, func(a, b keyedObject) int { return a.Key.compare(b.Key) })
	out := make([]Object, len(objs))
	for i := range objs {
		out[i] = objs[i].Object
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
