package control

import "time"

// LeaseGrace is how long a node that was live stays so after a full list does not
// show its lease. When a store comes back after an absence its leases may all
// have run out while the nodes were well, and they need this long to renew them.
const LeaseGrace = 15 * time.Second

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
			o.watchLive(name, func() { delete(o.lingering, name) })
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

// Live reports whether a node counts as live: it is this one, or has a lease, or
// keeps none, being run by something other than vswitch, or by Kubernetes.
func (o *Objects) Live(node string) bool {
	if node == o.self.Node || o.self.Kubernetes {
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

// leaseEnded ends a node's life, or begins its grace.
func (o *Objects) leaseEnded(node string) {
	if _, had := o.leases[node]; !had {
		return
	}
	o.watchLive(node, func() {
		delete(o.leases, node)
		if o.away || o.now.Before(o.doubt) {
			o.lingering[node] = o.now.Add(LeaseGrace)
		}
	})
}

// watchLive makes a change and, if a node then lives that did not, or no longer
// does, has compiled anew what depends on it. A lease renewed changes nothing.
func (o *Objects) watchLive(node string, change func()) {
	was := o.Live(node)
	change()
	if o.Live(node) != was {
		o.nodesDirty = true // of two that claim one thing the live one has it
		o.dirtyBehind(node)
	}
}
