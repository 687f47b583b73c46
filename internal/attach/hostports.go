package attach

import (
	"fmt"

	"vswitch/control"
)

// Ports of the host that lead to pods (Kubernetes' hostPort). They are open while the
// attachment is attached, and stay with it in the records, so that the next daemon
// opens them again.

// checkPorts refuses mappings that this node can't have, or that another pod has.
// Callers hold mu.
func (m *Manager) checkPorts(r *Request) error {
	if len(r.Ports) > 0 && m.cfg.HostPorts == nil {
		return &InvalidError{"port mapping", r.Ports[0].String(), "none: this node gives pods no ports of the host (--host-ports=false)"}
	}
	for _, p := range r.Ports {
		for _, e := range m.byKey {
			for _, q := range e.Ports {
				if p.HostPort == q.HostPort && p.Protocol == q.Protocol && p.HostIP == q.HostIP {
					return fmt.Errorf("%w: %v is %s's", ErrPortUsed, p, e.podName())
				}
			}
		}
	}
	return nil
}

func (p *PortMapping) validate() error {
	switch {
	case p.HostPort == 0 || p.PodPort == 0:
		return &InvalidError{"port mapping", fmt.Sprintf("%d to %d", p.HostPort, p.PodPort), "ports 1 to 65535"}
	case p.Protocol != control.TCP && p.Protocol != control.UDP:
		return &InvalidError{"port mapping", p.String(), "TCP or UDP, as no host socket carries another"}
	case p.HostIP.Is4In6() || p.HostIP.Zone() != "" || p.HostIP.IsMulticast():
		return &InvalidError{"port mapping", p.HostIP.String(), "an address of the host"}
	}
	return nil
}

func (m *Manager) openHostPorts(e *entry) error {
	if len(e.Ports) == 0 {
		return nil
	}
	if m.cfg.HostPorts == nil { // it had them under the last daemon
		m.cfg.Log.Warn("pod's host ports stay closed: --host-ports=false", "pod", e.podName())
		return nil
	}
	return m.cfg.HostPorts.Open(&e.Attachment)
}

func (m *Manager) closeHostPorts(e *entry) {
	if len(e.Ports) > 0 && m.cfg.HostPorts != nil {
		m.cfg.HostPorts.Close(&e.Attachment)
	}
}
