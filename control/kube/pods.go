package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

// The pods of this node are told as the node knows them, by their interfaces, with
// what only the API server knows: labels, and whether they are ready. Nothing of
// them is written: that is the kubelet's to do.

// LoadPods gives the interfaces that exist on this node, once, at start.
func (s *Source) LoadPods(pods []*corev1.Pod) {
	for _, p := range pods {
		s.PublishPod(p)
	}
}

// PublishPod tells of an interface that was made. It never waits.
func (s *Source) PublishPod(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached[control.KeyOf(pod)] = pod
	if s.sink != nil {
		s.sink.Update([]control.Object{s.merged(pod)}, nil)
	}
}

// UnpublishPod tells of one that is gone.
func (s *Source) UnpublishPod(key control.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.attached, key)
	if s.sink != nil {
		s.sink.Update(nil, []control.Key{key})
	}
}

// merged is the record of an interface with what the API server says of its pod, if
// it is that pod: one of the same name may follow it before it is gone. Callers
// hold mu.
func (s *Source) merged(pod *corev1.Pod) *corev1.Pod {
	key := control.Key{Kind: control.KindPod, Scope: pod.Namespace, Name: pod.Name}
	p, ok := s.mirrors[control.KindPod].objs[key].(*corev1.Pod)
	if !ok || p.UID != pod.UID && string(pod.UID) != pod.Annotations[control.AnnotationContainerID] {
		return pod
	}
	out := *pod
	out.Labels, out.CreationTimestamp, out.DeletionTimestamp = p.Labels, p.CreationTimestamp, p.DeletionTimestamp
	out.Status.Phase, out.Status.Conditions = p.Status.Phase, p.Status.Conditions
	return &out
}

// attachedAgain are the records of the interfaces of pods that changed. Callers hold mu.
func (s *Source) attachedAgain(puts []control.Object, deletes []control.Key) []control.Object {
	changed := map[control.Key]bool{}
	for _, o := range puts {
		changed[control.KeyOf(o)] = true
	}
	for _, k := range deletes {
		changed[k] = true
	}
	var out []control.Object
	for _, p := range s.attached {
		if changed[control.Key{Kind: control.KindPod, Scope: p.Namespace, Name: p.Name}] {
			out = append(out, s.merged(p))
		}
	}
	return out
}

// Apply refuses: objects are written where they live.
func (s *Source) Apply(_ context.Context, objs []control.Object) ([]control.Object, error) {
	return nil, s.refuse(control.KeyOf(objs[0]))
}

// Delete refuses likewise.
func (s *Source) Delete(_ context.Context, kind control.Kind, namespace, name string) error {
	return s.refuse(control.Key{Kind: kind, Scope: namespace, Name: name})
}

func (s *Source) refuse(key control.Key) error {
	return &control.ConflictError{What: key.String(), Holder: "Kubernetes' API server", Advice: "change it there, with kubectl"}
}
