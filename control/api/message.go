package api

// The messages of control/api/v1/vswitch.proto that Client's calls need, as plain
// structs: what each means is said there. A tag is a field's number. A message within
// another is a value: one that is absent and one that is empty are the same here.
// TestMessagesAreThoseOfTheAPI holds them against the generated ones.

type (
	// AttachmentKey is the identity of an attachment.
	AttachmentKey struct {
		Network     string `pb:"1"`
		ContainerID string `pb:"2"`
		Ifname      string `pb:"3"`
	}
	// Pod is whose attachment it is.
	Pod struct {
		Namespace string            `pb:"1"`
		Name      string            `pb:"2"`
		UID       string            `pb:"3"`
		Labels    map[string]string `pb:"4"`
	}
	// PortMapping is a port of the host that leads to a pod.
	PortMapping struct {
		HostPort      uint32 `pb:"1"`
		ContainerPort uint32 `pb:"2"`
		Protocol      string `pb:"3"`
		HostIP        string `pb:"4"`
	}
	// Attachment is an attachment as the daemon has recorded it.
	Attachment struct {
		Key          AttachmentKey `pb:"1"`
		Netns        string        `pb:"2"`
		Pod          Pod           `pb:"3"`
		IPs          []string      `pb:"4"`
		MAC          string        `pb:"5"`
		MTUBytes     uint32        `pb:"6"`
		Queues       uint32        `pb:"7"`
		Plain        bool          `pb:"8"`
		Attached     bool          `pb:"9"`
		Token        string        `pb:"10"`
		PortMappings []PortMapping `pb:"11"`
		Host         bool          `pb:"12"`
	}
	// Resolver is how a pod finds names.
	Resolver struct {
		Nameservers []string `pb:"1"`
		Domain      string   `pb:"2"`
		Search      []string `pb:"3"`
		Options     []string `pb:"4"`
	}
)

// Requests and replies.
type (
	AddPodRequest struct {
		Key          AttachmentKey `pb:"1"`
		Netns        string        `pb:"2"`
		Pod          Pod           `pb:"3"`
		PortMappings []PortMapping `pb:"4"`
		Host         bool          `pb:"5"`
	}
	AddPodReply struct {
		IPs           []string `pb:"1"`
		Gateways      []string `pb:"2"`
		MAC           string   `pb:"3"`
		GatewayMAC    string   `pb:"4"`
		MTUBytes      uint32   `pb:"5"`
		Queues        uint32   `pb:"6"`
		Token         string   `pb:"7"`
		GSOMaxBytes   uint32   `pb:"8"`
		TxQueueFrames uint32   `pb:"9"`
		Plain         bool     `pb:"10"`
		Routes        []string `pb:"11"`
		DNS           Resolver `pb:"12"`
	}
	DelPodRequest struct {
		Key AttachmentKey `pb:"1"`
	}
	DelPodReply     struct{}
	CheckPodRequest struct {
		Key AttachmentKey `pb:"1"`
	}
	CheckPodReply struct {
		Attachment Attachment `pb:"1"`
		Gateways   []string   `pb:"2"`
		GatewayMAC string     `pb:"3"`
		Routes     []string   `pb:"4"`
	}
	StatusRequest struct{}
	StatusReply   struct {
		Ready               bool   `pb:"1"`
		Reason              string `pb:"2"`
		LimitedConnectivity bool   `pb:"3"`
	}
	GCRequest struct {
		Network string          `pb:"1"`
		Valid   []AttachmentKey `pb:"2"`
	}
	GCReply struct {
		Removed []Attachment `pb:"1"`
		Failed  []GCFailure  `pb:"2"`
	}
	GCFailure struct {
		Key   AttachmentKey `pb:"1"`
		Error string        `pb:"2"`
	}
	ListAttachmentsRequest struct {
		DetachedOnly bool `pb:"1"`
	}
	ListAttachmentsReply struct {
		Attachments []Attachment `pb:"1"`
	}
	VersionRequest struct{}
	VersionReply   struct {
		Version        string `pb:"1"`
		GoVersion      string `pb:"2"`
		Node           string `pb:"3"`
		PID            uint32 `pb:"4"`
		UpgradeRefused string `pb:"5"`
	}
)
