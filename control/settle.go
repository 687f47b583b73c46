package control

import (
	"slices"
	"strings"
)

// Delta is what leads from one State to the next. Each list is sorted by key.
type Delta struct {
	PutTunnels     []Tunnel
	DeleteTunnels  []TunnelKey
	PutServices    []*Service // read only
	DeleteServices []ServiceKey
}

// Empty reports whether nothing changed.
func (d *Delta) Empty() bool {
	return len(d.PutTunnels)+len(d.DeleteTunnels)+len(d.PutServices)+len(d.DeleteServices) == 0
}

// Delta is how the state changed since Delta was last called; the first time, since
// there was nothing.
func (o *Objects) Delta() Delta {
	o.settle()
	var d Delta
	for key, was := range o.changed {
		switch is := o.final(key); {
		case is == nil && was != nil:
			d.DeleteServices = append(d.DeleteServices, key)
		case is != nil && (was == nil || !was.equal(is)):
			d.PutServices = append(d.PutServices, is)
		}
	}
	o.changed = emptied(o.changed)
	o.tunnelsDelta(&d)
	slices.SortFunc(d.PutServices, func(a, b *Service) int { return a.ServiceKey.compare(b.ServiceKey) })
	slices.SortFunc(d.DeleteServices, ServiceKey.compare)
	return d
}

// tunnelsDelta adds the tunnels, of which there may be thousands: they are looked
// through only if some node changed.
func (o *Objects) tunnelsDelta(d *Delta) {
	if !o.tunnelsCompiled {
		return
	}
	for _, m := range match(o.told, o.tunnels, func(t Tunnel) TunnelKey { return t.TunnelKey }, TunnelKey.compare) {
		switch {
		case m.want == nil:
			d.DeleteTunnels = append(d.DeleteTunnels, m.have.TunnelKey)
		case m.have == nil || !m.have.equal(m.want):
			d.PutTunnels = append(d.PutTunnels, *m.want)
		}
	}
	o.told, o.tunnelsCompiled = o.tunnels, false
}

// keptRoom is how large a list or map may grow that is kept to be filled again: a
// full list would otherwise hold on to its own size for ever.
const keptRoom = 1024

func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > keptRoom {
		return map[K]V{}
	}
	clear(m)
	return m
}

// State is what this node's dataplane should hold. The lists are the caller's,
// what their elements refer to is shared.
func (o *Objects) State() State {
	all := o.services()
	return State{Tunnels: slices.Clone(o.tunnels), Services: sortedServices(all)}
}

// services are the services of the state in any order.
func (o *Objects) services() []*Service {
	o.settle()
	var all []*Service
	for _, e := range o.entries {
		for _, p := range e.ports {
			if p.final != nil {
				all = append(all, p.final)
			}
		}
	}
	return all
}

func sortedServices(all []*Service) []Service {
	slices.SortFunc(all, func(a, b *Service) int { return a.ServiceKey.compare(b.ServiceKey) })
	var out []Service
	for _, s := range all {
		out = append(out, *s)
	}
	return out
}

// final is what a key stands for now; nil: nothing.
func (o *Objects) final(key ServiceKey) *Service {
	e := o.entries[objectName{key.Namespace, key.Name}]
	if e == nil {
		return nil
	}
	if p := e.port(key); p != nil {
		return p.final
	}
	return nil
}

func (e *serviceEntry) port(key ServiceKey) *port {
	for _, p := range e.ports {
		if p.key == key {
			return p
		}
	}
	return nil
}

// Problems are what the state leaves out, sorted.
func (o *Objects) Problems() []Problem {
	o.settle()
	out := slices.Clone(o.tunnelProblems)
	for e := range o.troubled {
		out = append(out, e.problems...)
		for _, p := range e.ports {
			out = append(out, p.lost...)
		}
	}
	slices.SortFunc(out, func(a, b Problem) int {
		if c := a.Object.compare(b.Object); c != 0 {
			return c
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	return slices.Compact(out)
}

// ProblemsChanged reports whether Problems may differ from when it last said so.
func (o *Objects) ProblemsChanged() bool {
	o.settle()
	changed := o.problemsChanged
	o.problemsChanged = false
	return changed
}

// settle brings what was compiled up to date with the objects.
func (o *Objects) settle() {
	o.settleNodes()
	for _, e := range o.dirty {
		o.settleService(e)
	}
	if len(o.dirty) > keptRoom {
		o.dirty = nil
	}
	clear(o.dirty)
	o.dirty = o.dirty[:0]
}

// settleNodes computes what follows from the nodes, and marks the services for
// whose outside addresses it matters whose addresses are whose.
func (o *Objects) settleNodes() {
	if !o.nodesDirty {
		return
	}
	o.nodesDirty, o.tunnelsCompiled = false, true
	problems := o.tunnelProblems
	o.compileNodes()
	o.problemsChanged = o.problemsChanged || !slices.Equal(problems, o.tunnelProblems)
	for _, e := range o.entries {
		if e.outside {
			o.markDirty(e)
		}
	}
}

// settleService compiles one service anew.
func (o *Objects) settleService(e *serviceEntry) {
	e.dirty = false
	problems := e.problems
	e.problems, e.outside = nil, false
	o.seen.nodes = o.seen.nodes[:0]
	var want []*Service
	if e.record != nil {
		want = o.compileService(e)
		o.compileNames(e.name, e)
	} else {
		delete(o.entries, e.name)
	}
	e.nodes = o.seen.distinctNodes(e.nodes)
	o.setPorts(e, want)
	if !slices.Equal(problems, e.problems) {
		o.problemsChanged = true
	}
	o.noteTrouble(e)
}

// setPorts makes e's ports those wanted, and has those looked at again that want
// the same as one that came or went.
func (o *Objects) setPorts(e *serviceEntry, want []*Service) {
	var ports, concerned []*port
	for _, w := range want {
		p := e.port(w.ServiceKey)
		if p == nil {
			p = &port{key: w.ServiceKey, owner: e}
		}
		born := e.record.CreationTimestamp.Time
		if p.want == nil || !p.want.sameClaims(w) || !p.born.Equal(born) {
			if p.want != nil {
				concerned = append(concerned, o.claims.remove(p)...)
			}
			p.want, p.born = w, born
			concerned = append(concerned, o.claims.add(p)...)
		} else if !p.want.equal(w) {
			p.want = w
		}
		ports = append(ports, p)
		concerned = append(concerned, p)
	}
	for _, p := range e.ports {
		if !slices.Contains(ports, p) {
			concerned = append(concerned, o.claims.remove(p)...)
			o.setFinal(p, nil)
			o.problemsChanged = o.problemsChanged || len(p.lost) > 0
		}
	}
	e.ports = ports
	for _, p := range concerned {
		if slices.Contains(p.owner.ports, p) { // it may have gone meanwhile
			o.resolve(p)
			o.noteTrouble(p.owner)
		}
	}
}

// noteTrouble remembers which services Problems has to ask.
func (o *Objects) noteTrouble(e *serviceEntry) {
	if o.entries[e.name] == e && (len(e.problems) > 0 || slices.ContainsFunc(e.ports, func(p *port) bool { return len(p.lost) > 0 })) {
		o.troubled[e] = true
	} else {
		delete(o.troubled, e)
	}
}

func (o *Objects) markDirty(e *serviceEntry) {
	if !e.dirty {
		e.dirty = true
		o.dirty = append(o.dirty, e)
	}
}

func (o *Objects) dirtyService(n objectName) {
	if e := o.entries[n]; e != nil {
		o.markDirty(e)
	}
}

// dirtyBehind marks the services that have endpoints on a node.
func (o *Objects) dirtyBehind(node string) {
	for _, e := range o.entries {
		if _, found := slices.BinarySearch(e.nodes, node); found {
			o.markDirty(e)
		}
	}
}

// scratch is what compiling one service collects, kept to be filled again.
type scratch struct {
	nodes      []string
	candidates []candidate
}

// node notes that the liveness or the zone of a node was looked at.
func (s *scratch) node(name string) { s.nodes = append(s.nodes, name) }

// distinctNodes are the nodes noted, sorted; the list before if it is the same.
func (s *scratch) distinctNodes(before []string) []string {
	slices.Sort(s.nodes)
	s.nodes = slices.Compact(s.nodes)
	if slices.Equal(s.nodes, before) {
		return before
	}
	return slices.Clone(s.nodes)
}
