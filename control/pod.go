package control

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

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

// NewPod makes the record a node publishes for a running pod.
func NewPod(p PodInfo) *corev1.Pod { return nil }
