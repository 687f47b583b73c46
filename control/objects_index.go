package control

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The indexes of Objects: from a pod to the services that select it, from a
// service to the pods it selects and to its slices. What a change touches is
// marked dirty here.

// podEntry is a pod and where it stands in the lists of its labels, so that it
// leaves a list of thousands without a search.
type podEntry struct {
	*podRecord
	in []podPlace
}

type podPlace struct {
	list *podList
	at   int
}

// podList is the pods that carry one label, in any order. Of each it knows which
// of the pod's places this one is.
type podList struct {
	term labelTerm
	pods []podRef
}

type podRef struct {
	*podEntry
	place int
}

func (l *podList) add(e *podEntry) {
	e.in = append(e.in, podPlace{l, len(l.pods)})
	l.pods = append(l.pods, podRef{e, len(e.in) - 1})
}

func (l *podList) remove(at int) {
	last := l.pods[len(l.pods)-1]
	l.pods[at] = last
	last.in[last.place].at = at
	l.pods[len(l.pods)-1] = podRef{}
	l.pods = l.pods[:len(l.pods)-1]
}

func (o *Objects) addPod(p *corev1.Pod) {
	r := newPodRecord(p)
	e := &podEntry{podRecord: r}
	o.pods[r.key] = e
	if o.self.Kubernetes {
		return // nothing is selected
	}
	for t := range r.terms {
		l := o.labelled[t]
		if l == nil {
			l = &podList{term: t}
			o.labelled[t] = l
		}
		l.add(e)
	}
	o.dirtySelecting(r)
}

func (o *Objects) removePod(key Key) {
	e := o.pods[key]
	if e == nil {
		return
	}
	delete(o.pods, key)
	for _, at := range e.in {
		if at.list.remove(at.at); len(at.list.pods) == 0 {
			delete(o.labelled, at.list.term)
		}
	}
	o.dirtySelecting(e.podRecord)
}

func (o *Objects) dirtySelecting(p *podRecord) {
	for t := range p.terms {
		for _, e := range o.selecting[t] {
			if !e.dirty && p.selectedBy(e.record.Spec.Selector) {
				o.markDirty(e)
			}
		}
	}
}

func (o *Objects) putService(s *corev1.Service) {
	name := objectName{s.Namespace, s.Name}
	e := o.entries[name]
	if e == nil {
		e = &serviceEntry{name: name}
		o.entries[name] = e
	} else if e.record != nil {
		o.unselect(e)
	}
	e.record = s
	o.markDirty(e)
	if len(s.Spec.Selector) == 0 || o.self.Kubernetes {
		return
	}
	// Under the label that the fewest have, or one that all services name would
	// lead every pod to every service.
	first := true
	for k, v := range s.Spec.Selector {
		t := labelTerm{s.Namespace, k, v}
		if first || len(o.selecting[t]) < len(o.selecting[e.term]) {
			e.term, first = t, false
		}
	}
	o.selecting[e.term] = append(o.selecting[e.term], e)
}

// unselect takes a service out of the index of selectors.
func (o *Objects) unselect(e *serviceEntry) {
	if e.record == nil || len(e.record.Spec.Selector) == 0 {
		return
	}
	l := o.selecting[e.term]
	for i := range l {
		if l[i] == e {
			l[i] = l[len(l)-1]
			l[len(l)-1] = nil
			l = l[:len(l)-1]
			break
		}
	}
	if o.selecting[e.term] = l; len(l) == 0 {
		delete(o.selecting, e.term)
	}
}

// selected calls f for every pod that a service's selector matches. It walks the
// shortest of the lists of pods that carry one of the selector's labels.
func (o *Objects) selected(s *corev1.Service, f func(*podRecord)) {
	if len(s.Spec.Selector) == 0 || o.self.Kubernetes {
		return // no selector selects nothing: the endpoints are the user's
	}
	var shortest *podList
	for k, v := range s.Spec.Selector {
		l := o.labelled[labelTerm{s.Namespace, k, v}]
		if l == nil {
			return
		}
		if shortest == nil || len(l.pods) < len(shortest.pods) {
			shortest = l
		}
	}
	for _, e := range shortest.pods {
		if e.selectedBy(s.Spec.Selector) {
			f(e.podRecord)
		}
	}
}

func (o *Objects) putSlice(key Key, s *Slice) {
	o.noteTrigger(o.slices[key], s)
	o.removeSlice(key)
	o.slices[key] = s
	service := objectName{s.Namespace, s.service}
	o.sliceOf[service] = append(o.sliceOf[service], s)
	o.dirtyService(service)
}

func (o *Objects) removeSlice(key Key) {
	s := o.slices[key]
	if s == nil {
		return
	}
	delete(o.slices, key)
	service := objectName{s.Namespace, s.service}
	if left := slices.DeleteFunc(o.sliceOf[service], func(of *Slice) bool { return of == s }); len(left) > 0 {
		o.sliceOf[service] = left
	} else {
		delete(o.sliceOf, service)
	}
	o.dirtyService(service)
}
