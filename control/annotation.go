package control

// Annotations vswitch writes. The facts of a vswitch node are annotations of its
// Node, so that one schema describes every node, whoever runs it.
const (
	AnnotationInstance = "vswitch.dev/instance"  // state directory that holds the node's claim
	AnnotationUnderlay = "vswitch.dev/underlay"  // addresses, comma separated, preferred first
	AnnotationUDPPorts = "vswitch.dev/udp-ports" // ports, comma separated
	AnnotationVNI      = "vswitch.dev/vni"
	AnnotationVTEPMAC  = "vswitch.dev/vtep-mac"
	// AnnotationIngressVNI is where the node takes frames from outside the cluster;
	// a node without it takes none.
	AnnotationIngressVNI = "vswitch.dev/ingress-vni"

	AnnotationContainerID = "vswitch.dev/container-id"
	AnnotationInterface   = "vswitch.dev/interface"
	AnnotationMAC         = "vswitch.dev/mac"
)

// NodeAnnotations are all that say how others reach a node. A node that vswitch runs
// writes them; no other annotation of a Node is read.
func NodeAnnotations() []string {
	return []string{
		AnnotationInstance, AnnotationUnderlay, AnnotationUDPPorts, AnnotationVNI, AnnotationVTEPMAC, AnnotationIngressVNI,
		flannelBackendType, flannelData, flannelDataV6, flannelPublicIP, flannelPublicIPv6, flannelSubnetManager,
	}
}

// LabelProxyName is on a service that is another proxy's than the cluster's own
// (Kubernetes' pkg/proxy/apis/well_known_labels.go).
const LabelProxyName = "service.kubernetes.io/service-proxy-name"

// Annotations a user writes on a Service.
const (
	AnnotationMode          = "vswitch/mode"           // ModeProxy
	AnnotationProxyProtocol = "vswitch/proxy-protocol" // ProxyProtocolV2, with ModeProxy

	annotationPrefix = "vswitch/"
)

// Values of a Service's annotations.
const (
	ModeProxy       = "proxy" // TCP connections end in the gateway, which makes others to the endpoints
	ProxyProtocolV2 = "v2"    // endpoints are told the client by a PROXY protocol header, version 2
)

// LabelPortPrefix declares a pod's named port where nothing else does: the label
// port.vswitch.dev/http=8080 (or 53-udp, 9-sctp) is the container port "http".
const LabelPortPrefix = "port.vswitch.dev/"

// Annotations flannel writes (flannel pkg/subnet/kube/annotations.go, with the
// default prefix).
const (
	flannelBackendType = "flannel.alpha.coreos.com/backend-type"
	flannelData        = "flannel.alpha.coreos.com/backend-data"
	flannelDataV6      = "flannel.alpha.coreos.com/backend-v6-data"
	flannelPublicIP    = "flannel.alpha.coreos.com/public-ip"
	flannelPublicIPv6  = "flannel.alpha.coreos.com/public-ipv6"

	flannelSubnetManager = "flannel.alpha.coreos.com/kube-subnet-manager"
)
