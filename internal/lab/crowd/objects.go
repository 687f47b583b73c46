package crowd

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Objects are as large as real ones are: what a client leaves unread still has to come
// to it.

const (
	namespaces       = 100
	imagesOfANode    = 50  // as many as a kubelet reports
	endpointsOfSlice = 100 // as many as the controller puts into one
)

// made is when everything was.
var made = metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))

func meta(kind, namespace, name string, number int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: made, UID: uid(kind, number)}
}

func uid(kind string, number int) types.UID {
	return types.UID(fmt.Sprintf("00000000-0000-4000-%s-%012x", map[string]string{
		"namespace": "8000", "node": "8001", "pod": "8002", "service": "8003", "slice": "8004", "address": "8005",
	}[kind], number))
}

func namespaceName(i int) string { return fmt.Sprintf("crowd-%02d", i%namespaces) }

func (c *Crowd) namespace(i int) *corev1.Namespace {
	n := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: meta("namespace", "", namespaceName(i), i)}
	n.Labels = map[string]string{corev1.LabelMetadataName: n.Name}
	n.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
	n.Status.Phase = corev1.NamespaceActive
	return n
}

// Node is node i as its kubelet and, but for the first, vswitch left it.
func (c *Crowd) Node(i int) *corev1.Node {
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: meta("node", "", c.NodeName(i), i)}
	n.Labels = map[string]string{
		corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		corev1.LabelInstanceTypeStable: "crowd.large", corev1.LabelTopologyRegion: "here",
	}
	n.Spec.PodCIDR = c.NodeCIDR(i).String()
	n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
	at := c.Underlay(i).String()
	if i > 0 { // the first says itself how it is reached
		n.Annotations = map[string]string{
			"vswitch.dev/instance": string(n.UID), "vswitch.dev/underlay": at, "vswitch.dev/udp-ports": "8472,8473",
			"vswitch.dev/vni": "1", "vswitch.dev/ingress-vni": "8388609", "vswitch.dev/vtep-mac": vtepMAC(i),
			"flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/kube-subnet-manager": "true",
			"flannel.alpha.coreos.com/backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, vtepMAC(i)),
			"flannel.alpha.coreos.com/public-ip":    at,
		}
	}
	amount := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("65802120Ki"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("203070420Ki"),
	}
	n.Status = corev1.NodeStatus{
		Capacity: amount, Allocatable: amount,
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at}, {Type: corev1.NodeHostName, Address: n.Name}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID: strings.ReplaceAll(string(n.UID), "-", ""), SystemUUID: string(n.UID), BootID: string(n.UID), KernelVersion: "6.12.0-1-amd64",
			OSImage: "Debian GNU/Linux 13 (trixie)", ContainerRuntimeVersion: "containerd://2.1.0", KubeletVersion: "v1.37.2",
			OperatingSystem: "linux", Architecture: "amd64",
		},
	}
	for _, t := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeReady} {
		s := corev1.ConditionFalse
		if t == corev1.NodeReady {
			s = corev1.ConditionTrue
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: t, Status: s, Reason: "KubeletHas" + string(t), Message: "kubelet is posting " + string(t), LastHeartbeatTime: made, LastTransitionTime: made,
		})
	}
	n.Status.Images = images
	return n
}

// images are what every node has: nobody changes them.
var images = func() (all []corev1.ContainerImage) {
	for k := range imagesOfANode {
		name := fmt.Sprintf("registry.example/team-%02d/service-%03d", k%10, k)
		all = append(all, corev1.ContainerImage{
			Names: []string{fmt.Sprintf("%s@sha256:%064x", name, k), name + ":v1.2.3"}, SizeBytes: int64(k+1) << 20,
		})
	}
	return all
}()

func vtepMAC(i int) string { return fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16&255, i>>8&255, i&255) }

// podName is pod i's namespace and name.
func podName(i int) (namespace, name string) {
	return namespaceName(i), fmt.Sprintf("web-%06d-7d4584548-x2k4f", i)
}

// Pod is pod i as its kubelet reports it.
func (c *Crowd) Pod(i int) *corev1.Pod {
	namespace, name := podName(i)
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: meta("pod", namespace, name, i)}
	p.Labels = map[string]string{"app": fmt.Sprintf("web-%06d", i), "pod-template-hash": "7d4584548"}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7d4584548", UID: "1", Controller: new(true)}}
	p.Spec = corev1.PodSpec{
		NodeName: c.NodeName(c.NodeOf(i)), ServiceAccountName: "default", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
		SchedulerName: "default-scheduler", TerminationGracePeriodSeconds: new(int64(30)), SecurityContext: &corev1.PodSecurityContext{},
		Containers: []corev1.Container{{
			Name: "web", Image: "registry.example/team-00/service-000:v1.2.3", ImagePullPolicy: corev1.PullIfNotPresent,
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: TargetPort, Protocol: corev1.ProtocolTCP}},
		}},
	}
	at := c.PodAddr(i).String()
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: c.Underlay(c.NodeOf(i)).String(), PodIP: at, PodIPs: []corev1.PodIP{{IP: at}}, StartTime: &made, QOSClass: corev1.PodQOSBestEffort,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "web", Ready: true, Started: new(true), Image: p.Spec.Containers[0].Image, ImageID: fmt.Sprintf("sha256:%064x", 0),
			ContainerID: fmt.Sprintf("containerd://%064x", i), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: made}},
		}},
	}
	for _, t := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: made})
	}
	return p
}

// ServiceName is service i's namespace and name.
func ServiceName(i int) (namespace, name string) { return namespaceName(i), fmt.Sprintf("svc-%06d", i) }

// Service is service i.
func (c *Crowd) Service(i int) *corev1.Service {
	namespace, name := ServiceName(i)
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta("service", namespace, name, i)}
	s.Labels = map[string]string{"app": name, "app.kubernetes.io/managed-by": "crowd"}
	at := c.VIP(i).String()
	s.Spec = corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: at, ClusterIPs: []string{at}, Selector: map[string]string{"app": name},
		Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: ServicePort}},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: new(corev1.IPFamilyPolicySingleStack),
		SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyCluster),
	}
	s.Spec.Ports[0].TargetPort.IntVal = TargetPort
	return s
}

// address is the record of service i's address, without which the API server would
// look for who holds it.
func (c *Crowd) address(i int) *networkingv1.IPAddress {
	namespace, name := ServiceName(i)
	a := &networkingv1.IPAddress{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"}, ObjectMeta: meta("address", "", c.VIP(i).String(), i)}
	a.Labels = map[string]string{"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
	a.Spec.ParentRef = &networkingv1.ParentReference{Resource: "services", Namespace: namespace, Name: name}
	return a
}

// Slices are those of service i after it has changed a number of times. A change is in
// the first, which says when it was; zero: not at all.
func (c *Crowd) Slices(i, changes int, when time.Time) []*discoveryv1.EndpointSlice {
	namespace, name := ServiceName(i)
	var all []*discoveryv1.EndpointSlice
	for e, pod := range c.Endpoints(i, changes) {
		if e%endpointsOfSlice == 0 {
			n := len(all)
			s := &discoveryv1.EndpointSlice{
				TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
				ObjectMeta:  meta("slice", namespace, fmt.Sprintf("%s-%05d", name, n), i<<8+n),
				AddressType: discoveryv1.AddressTypeIPv4,
				Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(TargetPort))}},
			}
			s.Labels = map[string]string{
				"app": name, "app.kubernetes.io/managed-by": "crowd", discoveryv1.LabelServiceName: name,
				discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
			}
			s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: uid("service", i), Controller: new(true), BlockOwnerDeletion: new(true)}}
			if n == 0 && !when.IsZero() {
				s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: when.UTC().Format(time.RFC3339Nano)}
			}
			all = append(all, s)
		}
		s := all[len(all)-1]
		podNamespace, podName := podName(pod)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{c.PodAddr(pod).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   new(c.NodeName(c.NodeOf(pod))),
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: podNamespace, Name: podName, UID: uid("pod", pod)},
		})
	}
	return all
}
