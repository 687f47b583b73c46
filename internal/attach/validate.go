package attach

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

var (
	// containerID is what CNI allows (CNI 1.1.0, Parameters).
	containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	// network is what CNI allows for the name of a network configuration.
	network = containerID
	// podName is wider than Kubernetes' names, since without CNI_ARGS a container
	// id stands for it.
	podName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?$`)
)

// Limits of what a record holds. Linux bounds interface names; the others are
// Kubernetes', or ours where it has none.
const (
	maxIfnameBytes      = 15
	maxContainerIDBytes = 128
	maxNameBytes        = 253
	maxUIDBytes         = 128
	maxLabels           = 128
)

// validate refuses what could not be recorded, published or told apart.
func (r *Request) validate() error {
	switch {
	case len(r.Network) > maxNameBytes || !network.MatchString(r.Network):
		return &InvalidError{"network", r.Network, "a name of letters, digits, '_', '.' and '-'"}
	case r.Host != (r.Network == HostNetwork):
		return &InvalidError{"network", r.Network, "\"host\" for hosts (vswitch host attach) and another name for pods"}
	case r.Host && len(r.Ports) > 0:
		return &InvalidError{"port mapping", r.Ports[0].String(), "none for a host: its ports are its own"}
	case len(r.ContainerID) > maxContainerIDBytes || !containerID.MatchString(r.ContainerID):
		return &InvalidError{"container_id", r.ContainerID, "letters, digits, '_', '.' and '-', 128 at most"}
	case !validIfname(r.Ifname):
		return &InvalidError{"ifname", r.Ifname, "an interface name of 1 to 15 bytes without '/', ':' or spaces"}
	case !filepath.IsAbs(r.Netns) || strings.ContainsRune(r.Netns, 0):
		return &InvalidError{"netns", r.Netns, "an absolute path"}
	case len(validation.IsDNS1123Label(r.Pod.Namespace)) > 0:
		return &InvalidError{"pod namespace", r.Pod.Namespace, "lower-case letters, digits and '-', 63 at most"}
	case len(r.Pod.Name) > maxNameBytes || !podName.MatchString(r.Pod.Name):
		return &InvalidError{"pod name", r.Pod.Name, "letters, digits, '_', '.' and '-', 253 at most"}
	case len(r.Pod.UID) > maxUIDBytes || strings.ContainsFunc(r.Pod.UID, notPrintable):
		return &InvalidError{"pod uid", r.Pod.UID, "at most 128 printable characters"}
	}
	for i := range r.Ports {
		if err := r.Ports[i].validate(); err != nil {
			return err
		}
	}
	return validateLabels(r.Pod.Labels)
}

func validateLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return &InvalidError{"labels", "", "128 at most"}
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if problems := validation.IsQualifiedName(k); len(problems) > 0 {
			return &InvalidError{"label key", k, problems[0]}
		}
		if problems := validation.IsValidLabelValue(labels[k]); len(problems) > 0 {
			return &InvalidError{"value of label " + k, labels[k], problems[0]}
		}
	}
	return nil
}

// validIfname is the kernel's dev_valid_name.
func validIfname(s string) bool {
	return s != "" && len(s) <= maxIfnameBytes && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || notPrintable(r) })
}

func notPrintable(r rune) bool { return r <= ' ' || r == 0x7f }
