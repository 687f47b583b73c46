package kube

import (
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"vswitch/control"
)

// Of an object that comes what is used is copied, and the rest forgotten: a Node of a
// kubelet's is tens of kilobytes, of which a few hundred bytes matter. Strings that
// many objects have alike are kept once. What is trimmed may be trimmed again.

// shared is a string of which there is one copy.
func shared(s string) string { return unique.Make(s).Value() }

func meta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: shared(m.Namespace), UID: m.UID, ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp,
	}
}

// some are the entries of a map whose keys are wanted; nil if there are none.
func some(m map[string]string, want ...string) map[string]string {
	var out map[string]string
	for _, k := range want {
		v, ok := m[k]
		if !ok {
			continue
		}
		if out == nil {
			out = make(map[string]string, 1)
		}
		out[k] = v
	}
	return out
}

var nodeAnnotations = control.NodeAnnotations()

func trimNode(obj runtime.Object) control.Object {
	n := obj.(*corev1.Node)
	out := &corev1.Node{ObjectMeta: meta(&n.ObjectMeta), Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs}}
	out.Annotations = some(n.Annotations, nodeAnnotations...)
	out.Labels = some(n.Labels, corev1.LabelTopologyZone)
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out
}

// trimPod keeps of a pod of this node what its attachment does not know.
func trimPod(obj runtime.Object) control.Object {
	p := obj.(*corev1.Pod)
	out := &corev1.Pod{
		ObjectMeta: meta(&p.ObjectMeta), Spec: corev1.PodSpec{NodeName: p.Spec.NodeName},
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
	out.Labels, out.DeletionTimestamp = p.Labels, p.DeletionTimestamp
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out
}

func trimService(obj runtime.Object) control.Object {
	s := obj.(*corev1.Service)
	out := &corev1.Service{ObjectMeta: meta(&s.ObjectMeta)}
	out.Labels = some(s.Labels, control.LabelProxyName, corev1.IsHeadlessService)
	for k, v := range s.Annotations {
		if strings.HasPrefix(k, "vswitch/") {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[k] = v
		}
	}
	in := &s.Spec
	out.Spec = corev1.ServiceSpec{
		Type: in.Type, ClusterIP: in.ClusterIP, ClusterIPs: in.ClusterIPs, ExternalIPs: in.ExternalIPs,
		SessionAffinity: in.SessionAffinity, SessionAffinityConfig: in.SessionAffinityConfig,
		LoadBalancerSourceRanges: in.LoadBalancerSourceRanges, LoadBalancerClass: in.LoadBalancerClass,
		ExternalName: in.ExternalName, ExternalTrafficPolicy: in.ExternalTrafficPolicy, InternalTrafficPolicy: in.InternalTrafficPolicy,
		HealthCheckNodePort: in.HealthCheckNodePort, PublishNotReadyAddresses: in.PublishNotReadyAddresses,
	}
	for _, p := range in.Ports {
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{
			Name: shared(p.Name), Protocol: p.Protocol, Port: p.Port, TargetPort: p.TargetPort, NodePort: p.NodePort,
		})
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: i.IP, IPMode: i.IPMode})
	}
	return out
}

// trimSlice keeps hostnames only where names are asked for.
func trimSlice(obj runtime.Object, names bool) control.Object {
	if s, ok := obj.(*control.Slice); ok {
		return s
	}
	return control.NewSlice(obj.(*discoveryv1.EndpointSlice), names)
}
