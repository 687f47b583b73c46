package control

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/vswitch/frame"
)

// PodInfo is what a node knows of a pod interface it made.
type PodInfo struct {
	Node            string
	Namespace, Name string
	UID             string // empty: the container id stands for it
	Labels          map[string]string
	ContainerID     string
	Interface       string // in the pod, such as eth0
	Addrs           []netip.Addr
	MAC             frame.MAC
	ContainerPorts  []corev1.ContainerPort // declared ports; nil: those of labels port.vswitch.dev/NAME
}

// NewPod makes the record a node publishes for a running pod: a v1.Pod with what
// services and the command line need of it, and no more. A plugin learns nothing
// of probes, so a pod is ready from ADD to DEL.
func NewPod(p PodInfo) *corev1.Pod {
	uid := p.UID
	if uid == "" {
		uid = p.ContainerID
	}
	ports := p.ContainerPorts
	if ports == nil {
		ports = portsOfLabels(p.Labels)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: types.UID(uid), Labels: p.Labels,
			Annotations: map[string]string{
				AnnotationContainerID: p.ContainerID,
				AnnotationInterface:   p.Interface,
				AnnotationMAC:         p.MAC.String(),
			},
		},
		Spec: corev1.PodSpec{NodeName: p.Node},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	if len(ports) > 0 {
		pod.Spec.Containers = []corev1.Container{{Name: "pod", Ports: ports}}
	}
	for _, a := range p.Addrs {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(p.Addrs) > 0 {
		pod.Status.PodIP = p.Addrs[0].String()
	}
	return pod
}

// portsOfLabels reads the labels port.vswitch.dev/NAME=NUMBER[-PROTOCOL]. A label
// that reads otherwise declares nothing.
func portsOfLabels(labels map[string]string) []corev1.ContainerPort {
	var ports []corev1.ContainerPort
	for label, value := range labels {
		name, ok := strings.CutPrefix(label, LabelPortPrefix)
		if !ok || name == "" {
			continue
		}
		number, proto, _ := strings.Cut(value, "-")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			continue
		}
		p := corev1.Protocol(strings.ToUpper(proto))
		if p == "" {
			p = corev1.ProtocolTCP
		}
		if _, ok := protocolOf(p); ok {
			ports = append(ports, corev1.ContainerPort{Name: name, ContainerPort: int32(n), Protocol: p})
		}
	}
	slices.SortFunc(ports, func(a, b corev1.ContainerPort) int { return strings.Compare(a.Name, b.Name) })
	return ports
}

// protocolOf reads a protocol's name; empty is TCP, as everywhere in Kubernetes.
func protocolOf(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}
