package control

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/vswitch/frame"
)

// A pod that a node publishes is kept without loss, in every state it can have.
func TestPodsAreKeptWithoutLoss(t *testing.T) {
	whole := func() *corev1.Pod {
		return NewPod(PodInfo{
			Node: "a", Namespace: "default", Name: "web", UID: "u", ContainerID: "c", Interface: "eth0", MAC: frame.MAC{2, 0, 0, 0, 0, 1},
			Labels: map[string]string{"app": "web", "port.vswitch.dev/http": "8080", "port.vswitch.dev/dns": "53-udp"},
			Addrs:  []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:10:244::2")},
		})
	}
	for name, change := range map[string]func(*corev1.Pod){
		"as published":        func(*corev1.Pod) {},
		"not ready":           func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse },
		"without a condition": func(p *corev1.Pod) { p.Status.Conditions = nil },
		"finished":            func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"terminating":         func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Unix(9, 0)) },
		"with a birthday":     func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(9, 0) },
		"without labels":      func(p *corev1.Pod) { p.Labels, p.Spec.Containers = nil, nil },
		"with a name of its own": func(p *corev1.Pod) {
			p.Spec.Hostname, p.Spec.Subdomain = "web-0", "web"
		},
		"of another kind of node": func(p *corev1.Pod) { p.Annotations = nil },
	} {
		p := whole()
		change(p)
		r := newPodRecord(p)
		if got := r.object(); !reflect.DeepEqual(got, p) {
			t.Errorf("%s: kept as\n%+v\nwant\n%+v", name, got, p)
		}
		if r.key != KeyOf(p) {
			t.Errorf("%s: key %v, want %v", name, r.key, KeyOf(p))
		}
	}
}
