package control

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

func (a *ServiceAllocator) nodePorts(s, old *corev1.Service) error {
	if !hasNodePorts(&s.Spec) {
		return nil
	}
	mine := map[nodePort]bool{}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		if err := a.checkPort(s, "spec.healthCheckNodePort", nodePort{TCP, n}, mine); err != nil {
			return err
		}
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.NodePort == 0 {
			continue
		}
		proto, _ := protocolOf(p.Protocol)
		field := fmt.Sprintf("spec.ports[%d].nodePort", i)
		if err := a.checkPort(s, field, nodePort{proto, p.NodePort}, mine); err != nil {
			return err
		}
	}
	if needsHealthCheck(&s.Spec) && s.Spec.HealthCheckNodePort == 0 {
		port, ok := a.pickHealthPort(s, old, mine)
		if !ok {
			return noNodePort(s)
		}
		s.Spec.HealthCheckNodePort = port
	}
	if no := s.Spec.AllocateLoadBalancerNodePorts; no != nil && !*no {
		return nil
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		proto, _ := protocolOf(p.Protocol)
		port, ok := a.pickPort(s, old, p, proto, mine)
		if !ok {
			return noNodePort(s)
		}
		p.NodePort = port
		mine[nodePort{proto, port}] = true
	}
	return nil
}

// checkPort takes a port that s asks for, unless another has it, or another of
// s's own.
func (a *ServiceAllocator) checkPort(s *corev1.Service, field string, at nodePort, mine map[nodePort]bool) error {
	if at.port < NodePortMin || at.port > NodePortMax {
		return invalidField(s, field, "%d; want %d to %d, or none for one that is free", at.port, NodePortMin, NodePortMax)
	}
	if holder, ok := a.ports[at]; ok {
		return &ConflictError{What: fmt.Sprintf("nodePort %d/%s", at.port, at.proto), Holder: "Service " + holder, Advice: "choose another, or leave it open"}
	}
	if mine[at] {
		return invalidField(s, field, "%d/%s is another of its node ports already", at.port, at.proto)
	}
	mine[at] = true
	return nil
}

func noNodePort(s *corev1.Service) error {
	return fmt.Errorf("Service %s/%s: no free NodePort in %d-%d", s.Namespace, s.Name, NodePortMin, NodePortMax)
}

func (a *ServiceAllocator) pickHealthPort(s, old *corev1.Service, mine map[nodePort]bool) (int32, bool) {
	free := func(n uint64) bool {
		at := nodePort{TCP, int32(n)}
		_, taken := a.ports[at]
		return !taken && !mine[at]
	}
	n, ok := uint64(0), false
	if old != nil && old.Spec.HealthCheckNodePort != 0 && free(uint64(old.Spec.HealthCheckNodePort)) {
		n, ok = uint64(old.Spec.HealthCheckNodePort), true
	} else {
		n, ok = search(NodePortMin, NodePortMax+1, identity(s.Namespace, s.Name, "health check"), free)
	}
	mine[nodePort{TCP, int32(n)}] = true
	return int32(n), ok
}

func (a *ServiceAllocator) pickPort(s, old *corev1.Service, p *corev1.ServicePort, proto Protocol, mine map[nodePort]bool) (int32, bool) {
	free := func(n int32) bool {
		at := nodePort{proto, n}
		_, taken := a.ports[at]
		return n != 0 && !taken && !mine[at]
	}
	if old != nil {
		for _, q := range old.Spec.Ports {
			if q.Name == p.Name && q.Protocol == p.Protocol && free(q.NodePort) {
				return q.NodePort, true
			}
		}
	}
	for _, q := range s.Spec.Ports { // the same port over another protocol, such as DNS: the same number
		if q.Port == p.Port && q.Protocol != p.Protocol && free(q.NodePort) {
			return q.NodePort, true
		}
	}
	n, ok := search(NodePortMin, NodePortMax+1, identity(s.Namespace, s.Name, p.Name), func(n uint64) bool { return free(int32(n)) })
	return int32(n), ok
}
