package cni

import (
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/skel"

	"vswitch/control/api"
)

// attachment is what the environment of an ADD or CHECK names, validated.
type attachment struct {
	key   api.AttachmentKey
	netns string
	pod   api.Pod
}

// defaultNamespace is the namespace of a pod whose runtime knows none.
const defaultNamespace = "default"

// parseAttachment validates the environment. skel has checked the container id
// and the CNI specification's rules for an interface's name; here come the
// kernel's, and CNI_ARGS. Its errors are *types.Error with code 4.
func parseAttachment(args *skel.CmdArgs, c *conf) (*attachment, error) {
	if err := checkIfname(args.IfName); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(args.Netns) || !utf8.ValidString(args.Netns) {
		return nil, envError("CNI_NETNS", args.Netns, "want an absolute path")
	}
	pod, err := parsePod(args.Args, args.ContainerID)
	if err != nil {
		return nil, err
	}
	pod.Labels = c.Labels
	return &attachment{key: attachmentKey(args, c), netns: args.Netns, pod: *pod}, nil
}

func attachmentKey(args *skel.CmdArgs, c *conf) api.AttachmentKey {
	return api.AttachmentKey{Network: c.Network, ContainerID: args.ContainerID, Ifname: args.IfName}
}

// checkIfname refuses names that the kernel would take in a sense of its own:
// "%d" asks it to choose a number, "all" and "default" are not interfaces under
// /proc/sys, and "lo" is there already.
func checkIfname(name string) error {
	switch name {
	case "all", "default", "lo":
		return envError("CNI_IFNAME", name, "reserved by the kernel")
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '%' {
			return envError("CNI_IFNAME", name, "want printable ASCII without %")
		}
	}
	return nil
}

const maxPodName = 253 // RFC 1123 subdomains, as Kubernetes' names are

// isPodName takes what Kubernetes allows, and the upper case and underscores that
// other runtimes put into the same variables. A regular expression would cost each
// ADD half a millisecond, as it is compiled at the start.
func isPodName(name string) bool {
	alphanumeric := func(c byte) bool {
		return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
	}
	if name == "" || len(name) > maxPodName || !alphanumeric(name[0]) || !alphanumeric(name[len(name)-1]) {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// parsePod reads the pod from CNI_ARGS ("K=V;K=V"). Keys it doesn't know are
// errors unless IgnoreUnknown says otherwise (CNI conventions). Without a name
// the pod is called after its container.
func parsePod(cniArgs, containerID string) (*api.Pod, error) {
	values := map[string]string{}
	if cniArgs != "" {
		for pair := range strings.SplitSeq(cniArgs, ";") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" || strings.Contains(value, "=") {
				return nil, envError("CNI_ARGS", pair, "want KEY=VALUE;KEY=VALUE")
			}
			if _, twice := values[key]; twice {
				return nil, envError("CNI_ARGS", pair, "given twice")
			}
			values[key] = value
		}
	}
	ignoreUnknown := false
	switch v := values["IgnoreUnknown"]; strings.ToLower(v) {
	case "", "0", "false":
	case "1", "true":
		ignoreUnknown = true
	default:
		return nil, envError("CNI_ARGS", "IgnoreUnknown="+v, "want 0, 1, true or false")
	}
	pod := &api.Pod{Namespace: defaultNamespace, Name: containerID}
	for key, value := range values {
		var field *string
		switch key {
		case "K8S_POD_NAMESPACE":
			field = &pod.Namespace
		case "K8S_POD_NAME":
			field = &pod.Name
		case "K8S_POD_UID":
			field = &pod.UID
		case "IgnoreUnknown", "K8S_POD_INFRA_CONTAINER_ID":
			continue
		default:
			if !ignoreUnknown {
				return nil, envError("CNI_ARGS", key, "unknown key")
			}
			continue
		}
		if value == "" {
			continue // as if not given
		}
		if !isPodName(value) {
			return nil, envError("CNI_ARGS", key+"="+value, "want letters, digits, '-', '_' and '.', at most 253, a letter or digit first and last")
		}
		*field = value
	}
	return pod, nil
}
