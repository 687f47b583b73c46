package control

import (
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// podRecord is what a set keeps of a pod: what services, names and the command line
// need of it, and no more. A v1.Pod is 1,240 bytes before its first string, nearly
// all of them empty, which at 100,000 pods is what a node's memory went to. It is
// never changed.
type podRecord struct {
	key                          Key // a vswitch node's: node and container/interface
	namespace, name              string
	uid                          types.UID
	node, hostname, subdomain    string
	containerID, ifname, mac     string
	labels                       []podLabel // sorted by key
	addrs                        []netip.Addr
	ports                        []podPort
	phase                        corev1.PodPhase
	conditionReady, hasCondition bool
	created, deleted             metav1.Time // deleted: it terminates
}

type podLabel struct{ key, value string }

// podPort is a port that a container declares.
type podPort struct {
	name   string
	number uint16
	proto  Protocol
}

// shared is a string of which there is one copy, however many pods have it.
func shared(s string) string { return unique.Make(s).Value() }

func newPodRecord(p *corev1.Pod) *podRecord {
	r := &podRecord{
		key: KeyOf(p), namespace: shared(p.Namespace), name: p.Name, uid: p.UID,
		node: shared(p.Spec.NodeName), hostname: p.Spec.Hostname, subdomain: shared(p.Spec.Subdomain),
		containerID: p.Annotations[AnnotationContainerID], ifname: shared(p.Annotations[AnnotationInterface]),
		mac: p.Annotations[AnnotationMAC], phase: corev1.PodPhase(shared(string(p.Status.Phase))), created: p.CreationTimestamp,
	}
	if r.containerID != "" { // the key has all of it
		r.key.Scope, r.containerID = r.node, r.key.Name[:len(r.containerID)]
	}
	if p.DeletionTimestamp != nil {
		r.deleted = *p.DeletionTimestamp
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			r.hasCondition, r.conditionReady = true, c.Status == corev1.ConditionTrue
			break
		}
	}
	if len(p.Labels) > 0 {
		r.labels = make([]podLabel, 0, len(p.Labels))
		for k, v := range p.Labels {
			r.labels = append(r.labels, podLabel{shared(k), shared(v)})
		}
		slices.SortFunc(r.labels, func(a, b podLabel) int { return strings.Compare(a.key, b.key) })
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !a.Is4In6() {
			r.addrs = append(r.addrs, a)
		}
	}
	for _, containers := range [...][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range containers {
			for _, port := range containers[i].Ports {
				if proto, ok := protocolOf(port.Protocol); ok && port.Name != "" {
					r.ports = append(r.ports, podPort{shared(port.Name), uint16(port.ContainerPort), proto})
				}
			}
		}
	}
	r.addrs, r.ports = slices.Clip(r.addrs), slices.Clip(r.ports)
	return r
}

// object is the pod as a v1.Pod with what is known of it.
func (r *podRecord) object() *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: r.name, UID: r.uid, CreationTimestamp: r.created},
		Spec:       corev1.PodSpec{NodeName: r.node, Hostname: r.hostname, Subdomain: r.subdomain},
		Status:     corev1.PodStatus{Phase: r.phase},
	}
	if !r.deleted.IsZero() {
		p.DeletionTimestamp = r.deleted.DeepCopy()
	}
	if r.containerID != "" {
		p.Annotations = map[string]string{AnnotationContainerID: r.containerID, AnnotationInterface: r.ifname, AnnotationMAC: r.mac}
	}
	if r.hasCondition {
		c := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}
		if r.conditionReady {
			c.Status = corev1.ConditionTrue
		}
		p.Status.Conditions = []corev1.PodCondition{c}
	}
	if len(r.labels) > 0 {
		p.Labels = make(map[string]string, len(r.labels))
		for _, l := range r.labels {
			p.Labels[l.key] = l.value
		}
	}
	for i, a := range r.addrs {
		if i == 0 {
			p.Status.PodIP = a.String()
		}
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(r.ports) > 0 {
		c := corev1.Container{Name: "pod"}
		for _, port := range r.ports {
			c.Ports = append(c.Ports, corev1.ContainerPort{Name: port.name, ContainerPort: int32(port.number), Protocol: corev1.Protocol(port.proto.String())})
		}
		p.Spec.Containers = []corev1.Container{c}
	}
	return p
}

func (r *podRecord) terminating() bool { return !r.deleted.IsZero() }

// ready follows Kubernetes: a running pod whose Ready condition is true.
func (r *podRecord) ready() bool { return r.phase == corev1.PodRunning && r.conditionReady }

// addrsOf are the pod's addresses of one family.
func (r *podRecord) addrsOf(ipv6 bool) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for _, a := range r.addrs {
			if a.Is6() == ipv6 && !yield(a) {
				return
			}
		}
	}
}

// port is the number of the port that the pod declares under name.
func (r *podRecord) port(name string, proto Protocol) (uint16, bool) {
	for _, p := range r.ports {
		if p.name == name && p.proto == proto {
			return p.number, true
		}
	}
	return 0, false
}

// target is where a service's port leads at the pod; not ok if that is a name the
// pod does not declare.
func (r *podRecord) target(p *corev1.ServicePort, proto Protocol) (uint16, bool) {
	switch {
	case p.TargetPort.StrVal != "":
		return r.port(p.TargetPort.StrVal, proto)
	case p.TargetPort.IntVal != 0:
		return uint16(p.TargetPort.IntVal), true
	}
	return uint16(p.Port), true
}

// selectedBy reports whether every label of a selector is the pod's. The empty
// selector of a service selects nothing.
func (r *podRecord) selectedBy(selector map[string]string) bool {
	for k, v := range selector {
		if !slices.Contains(r.labels, podLabel{k, v}) {
			return false
		}
	}
	return len(selector) > 0
}

// terms are the pod's labels as the index knows them.
func (r *podRecord) terms(yield func(labelTerm) bool) {
	for _, l := range r.labels {
		if !yield(labelTerm{r.namespace, l.key, l.value}) {
			return
		}
	}
}
