package cni

import (
	"encoding/json"
	"net/netip"
	"strings"

	"vswitch/control/api"
)

// portMappings is the capability by which a runtime gives ports of the host that
// are to lead to the pod (CNI conventions, Dynamic Plugin specific fields).
const portMappings = "portMappings"

type portJSON struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// maxPorts bounds what one pod may ask for: Kubernetes has no limit, and no pod a
// reason for more.
const maxPorts = 1024

// parsePorts reads runtimeConfig.portMappings. One that is given twice counts once,
// as runtimes give those of several families.
func parsePorts(raw json.RawMessage) ([]api.PortMapping, error) {
	if absent(raw) {
		return nil, nil
	}
	var config struct {
		PortMappings []portJSON `json:"portMappings"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, decodingError("runtimeConfig.portMappings", err)
	}
	list := config.PortMappings
	if len(list) > maxPorts {
		return nil, configError("runtimeConfig.portMappings: %d of them, want %d at most", len(list), maxPorts)
	}
	type place struct {
		port           uint32
		protocol, host string
	}
	taken := map[place]uint32{}
	var all []api.PortMapping
	for i, p := range list {
		m, err := p.check(i)
		if err != nil {
			return nil, err
		}
		at := place{m.HostPort, m.Protocol, m.HostIP}
		to, twice := taken[at]
		switch {
		case twice && to != m.ContainerPort:
			return nil, configError("runtimeConfig.portMappings[%d]: host port %d/%s leads to %d already", i, m.HostPort, m.Protocol, to)
		case twice:
			continue
		}
		taken[at] = m.ContainerPort
		all = append(all, *m)
	}
	return all, nil
}

// check validates one mapping. No protocol is TCP, as for a port of a container.
func (p *portJSON) check(i int) (*api.PortMapping, error) {
	for _, port := range []struct {
		field string
		value int
	}{{"hostPort", p.HostPort}, {"containerPort", p.ContainerPort}} {
		if port.value < 1 || port.value > 65535 {
			return nil, configError("runtimeConfig.portMappings[%d].%s: %d: want 1 to 65535", i, port.field, port.value)
		}
	}
	m := &api.PortMapping{HostPort: uint32(p.HostPort), ContainerPort: uint32(p.ContainerPort)}
	switch m.Protocol = strings.ToLower(p.Protocol); m.Protocol {
	case "tcp", "udp":
	case "":
		m.Protocol = "tcp"
	default:
		return nil, configError("runtimeConfig.portMappings[%d].protocol: %q: want tcp or udp", i, p.Protocol)
	}
	if p.HostIP == "" {
		return m, nil
	}
	a, err := netip.ParseAddr(p.HostIP)
	if err != nil || a.Zone() != "" || a.IsMulticast() {
		return nil, configError("runtimeConfig.portMappings[%d].hostIP: %q: want an address of the host", i, p.HostIP)
	}
	m.HostIP = a.Unmap().String()
	return m, nil
}
