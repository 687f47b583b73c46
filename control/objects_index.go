package control

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The indexes of Objects: from a pod to the services that select it, from a
// service to the pods it selects and to its slices. What a change touches is
// marked dirty here.

func (o *Objects) putService(s *corev1.Service) {
	e := &serviceEntry{record: s, dirty: true}
	o.services[objectName{s.Namespace, s.Name}] = e
	m := o.inspace[s.Namespace]
	if m == nil {
		m = map[string]*serviceEntry{}
		o.inspace[s.Namespace] = m
	}
	m[s.Name] = e
}

func (o *Objects) addPod(key Key, p *corev1.Pod) {
	o.pods[key] = p
	for t := range podTerms(p) {
		m := o.podIndex[t]
		if m == nil {
			m = map[Key]*corev1.Pod{}
			o.podIndex[t] = m
		}
		m[key] = p
	}
	o.dirtySelecting(p)
}

func (o *Objects) removePod(key Key) {
	p := o.pods[key]
	if p == nil {
		return
	}
	delete(o.pods, key)
	for t := range podTerms(p) {
		m := o.podIndex[t]
		if delete(m, key); len(m) == 0 {
			delete(o.podIndex, t)
		}
	}
	o.dirtySelecting(p)
}

func (o *Objects) dirtySelecting(p *corev1.Pod) {
	for _, e := range o.inspace[p.Namespace] {
		if !e.dirty && selects(e.record.Spec.Selector, p.Labels) {
			e.dirty = true
		}
	}
}

// selected calls f for every pod that a service's selector matches. It walks the
// shortest of the lists of pods that carry one of the selector's labels.
func (o *Objects) selected(s *corev1.Service, f func(*corev1.Pod)) {
	if len(s.Spec.Selector) == 0 {
		return // no selector selects nothing: the endpoints are the user's
	}
	var shortest map[Key]*corev1.Pod
	first := true
	for k, v := range s.Spec.Selector {
		m := o.podIndex[labelTerm{s.Namespace, k, v}]
		if first || len(m) < len(shortest) {
			shortest, first = m, false
		}
	}
	for _, p := range shortest {
		if selects(s.Spec.Selector, p.Labels) {
			f(p)
		}
	}
}

func (o *Objects) addSlice(key Key, s *discoveryv1.EndpointSlice) {
	o.slices[key] = s
	service := objectName{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
	m := o.sliceOf[service]
	if m == nil {
		m = map[Key]*discoveryv1.EndpointSlice{}
		o.sliceOf[service] = m
	}
	m[key] = s
	o.dirtyService(service)
}

func (o *Objects) removeSlice(key Key) {
	s := o.slices[key]
	if s == nil {
		return
	}
	delete(o.slices, key)
	service := objectName{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
	m := o.sliceOf[service]
	if delete(m, key); len(m) == 0 {
		delete(o.sliceOf, service)
	}
	o.dirtyService(service)
}

func podTerms(p *corev1.Pod) func(func(labelTerm) bool) {
	return func(yield func(labelTerm) bool) {
		for k, v := range p.Labels {
			if !yield(labelTerm{p.Namespace, k, v}) {
				return
			}
		}
	}
}

// selects reports whether every label of a selector is among labels. The empty
// selector of a service selects nothing.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
