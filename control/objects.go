package control

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// LeaseGrace is how long a node that was live stays so after a full list does not
// show its lease. When a store comes back after an absence its leases may all
// have run out while the nodes were well, and they need this long to renew them.
const LeaseGrace = 15 * time.Second

// Objects is the set of objects a node has seen, and the state that follows.
//
// State is computed for the services that changed only: every service keeps what
// it was last compiled to. A pod reaches its services through its namespace, a
// service its pods through an index by label, so that the cost of a change goes
// with what it touches. A test compares the outcome with a fresh computation
// after random changes.
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
	pods      map[Key]*corev1.Pod
	podIndex  map[labelTerm]map[Key]*corev1.Pod
	services  map[objectName]*serviceEntry
	inspace   map[string]map[string]*serviceEntry // services by namespace and name
	slices    map[Key]*discoveryv1.EndpointSlice
	sliceOf   map[objectName]map[Key]*discoveryv1.EndpointSlice

	slicesDirty    bool // services with slices are to be compiled anew
	nodesDirty     bool // the four below are to be computed anew
	tunnels        []Tunnel
	tunnelProblems []Problem
	underlays      map[netip.Addr]string // node by underlay address
	podPrefixes    *bart.Lite            // of all nodes

	doubles []Problem // services left out by the last State

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

type serviceEntry struct {
	record   *corev1.Service
	dirty    bool
	compiled []Service
	problems []Problem
	nodes    map[string]bool // those whose liveness was looked at
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
		pods:        map[Key]*corev1.Pod{},
		podIndex:    map[labelTerm]map[Key]*corev1.Pod{},
		services:    map[objectName]*serviceEntry{},
		inspace:     map[string]map[string]*serviceEntry{},
		slices:      map[Key]*discoveryv1.EndpointSlice{},
		sliceOf:     map[objectName]map[Key]*discoveryv1.EndpointSlice{},
	}
}

// Reset replaces the whole set by a full list. A node that was live until now and
// has no lease in the list stays live for LeaseGrace.
func (o *Objects) Reset(all []Object, now time.Time) {
	o.Advance(now)
	old := *o
	*o = *NewObjects(old.self)
	o.now, o.away, o.doubt, o.nodesDirty = old.now, old.away, old.doubt, true
	o.names, o.namesStale = old.names, true
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

// SetReachable tells whether the source can be reached. While it can't, and for
// LeaseGrace after, a lease that ends says nothing about its node: it may be the
// store that was cut off from all of them.
func (o *Objects) SetReachable(ok bool, now time.Time) {
	o.Advance(now)
	if ok && o.away {
		o.doubt = now.Add(LeaseGrace)
		for name := range o.lingering {
			o.lingering[name] = o.doubt
		}
	}
	o.away = !ok
}

// Advance tells the time, and ends the grace of nodes whose time is over.
func (o *Objects) Advance(now time.Time) {
	o.now = now
	if o.away {
		return
	}
	for name, until := range o.lingering {
		if !now.Before(until) {
			delete(o.lingering, name)
			o.livenessChanged(name)
		}
	}
}

// Deadline is when Advance next has something to do; zero: never.
func (o *Objects) Deadline() time.Time {
	var first time.Time
	if o.away {
		return first
	}
	for _, t := range o.lingering {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first
}

// Put adds or replaces one object.
func (o *Objects) Put(obj Object) {
	key := KeyOf(obj)
	switch obj := obj.(type) {
	case *corev1.Node:
		e := &nodeEntry{record: obj}
		e.view, e.err = viewNode(obj)
		o.nodes[obj.Name] = e
		o.nodeChanged(obj.Name)
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
			delete(o.lingering, key.Name)
			o.leases[key.Name] = obj
			o.livenessChanged(key.Name)
		}
	}
}

// Delete removes one object, if it is there.
func (o *Objects) Delete(key Key) {
	switch key.Kind {
	case KindNode:
		delete(o.nodes, key.Name)
		delete(o.lingering, key.Name)
		o.nodeChanged(key.Name)
	case KindLease:
		o.leaseEnded(key.Name)
	case KindPod:
		o.removePod(key)
	case KindService:
		delete(o.services, objectName{key.Scope, key.Name})
		o.namesStale = true
		if m := o.inspace[key.Scope]; m != nil {
			if delete(m, key.Name); len(m) == 0 {
				delete(o.inspace, key.Scope)
			}
		}
	case KindEndpointSlice:
		o.removeSlice(key)
	}
}

// List returns the objects of a kind, sorted by key.
func (o *Objects) List(kind Kind) []Object {
	var out []Object
	switch kind {
	case KindNode:
		for _, e := range o.nodes {
			out = append(out, e.record)
		}
	case KindLease:
		for _, l := range o.leases {
			out = append(out, l)
		}
	case KindPod:
		for _, p := range o.pods {
			out = append(out, p)
		}
	case KindService:
		for _, e := range o.services {
			out = append(out, e.record)
		}
	case KindEndpointSlice:
		for _, s := range o.slices {
			out = append(out, s)
		}
	}
	sortObjects(out)
	return out
}

// All returns every object, sorted by kind and key.
func (o *Objects) All() []Object {
	var out []Object
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, o.List(kind)...)
	}
	return out
}

// Live reports whether a node counts as live: it is this one, or has a lease, or
// keeps none, being run by something other than vswitch.
func (o *Objects) Live(node string) bool {
	if node == o.self.Node {
		return true
	}
	if _, ok := o.leases[node]; ok {
		return true
	}
	if _, ok := o.lingering[node]; ok {
		return true
	}
	e, known := o.nodes[node]
	return !known || e.view.instance == ""
}

// State is what this node's dataplane should hold. The lists are the caller's,
// what their elements refer to is shared.
func (o *Objects) State() State {
	if o.nodesDirty {
		o.compileNodes()
		o.nodesDirty = false
	}
	if o.slicesDirty {
		for service := range o.sliceOf {
			o.dirtyService(service)
		}
		o.slicesDirty = false
	}
	s := State{Tunnels: slices.Clone(o.tunnels)}
	for key, e := range o.services {
		if e.dirty {
			o.compileService(e)
			o.compileNames(key, e)
			e.dirty = false
		}
		s.Services = append(s.Services, e.compiled...)
	}
	slices.SortFunc(s.Services, func(a, b Service) int { return a.ServiceKey.compare(b.ServiceKey) })
	s.Services = o.dropDoubles(s.Services)
	return s
}

// Problems are what State left out, sorted. Valid after State.
func (o *Objects) Problems() []Problem {
	out := slices.Concat(o.tunnelProblems, o.doubles)
	for _, e := range o.services {
		out = append(out, e.problems...)
	}
	slices.SortFunc(out, func(a, b Problem) int {
		if c := a.Object.compare(b.Object); c != 0 {
			return c
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	return slices.Compact(out)
}

func (o *Objects) leaseEnded(node string) {
	if _, had := o.leases[node]; !had {
		return
	}
	delete(o.leases, node)
	if o.away || o.now.Before(o.doubt) {
		o.lingering[node] = o.now.Add(LeaseGrace)
	}
	o.livenessChanged(node)
}

func (o *Objects) nodeChanged(name string) {
	o.livenessChanged(name)
	o.slicesDirty = true // whether a user's endpoint is a node's own address depends on all nodes
}

func (o *Objects) dirtyService(n objectName) {
	if e := o.services[n]; e != nil {
		e.dirty = true
	}
}

func (o *Objects) livenessChanged(node string) {
	o.nodesDirty = true // of two that claim one thing the live one has it
	for _, e := range o.services {
		e.dirty = e.dirty || e.nodes[node]
	}
}

func sortObjects(objs []Object) {
	slices.SortFunc(objs, func(a, b Object) int { return KeyOf(a).compare(KeyOf(b)) })
}
