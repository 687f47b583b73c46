package control

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (v *invalid) service(o *corev1.Service) {
	s := &o.Spec
	switch s.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		v.clusterIPs(s)
	case corev1.ServiceTypeExternalName:
		v.externalName(s)
	default:
		v.addf("spec.type", "%q is not known; want ClusterIP, NodePort, LoadBalancer or ExternalName", s.Type)
	}
	v.labels("spec.selector", s.Selector)
	v.servicePorts(s)
	v.policies(s)
	v.outside(s)
	v.balancer(s)
	v.status(o)
	v.annotations(o)
}

func (v *invalid) externalName(s *corev1.ServiceSpec) {
	if s.ExternalName == "" {
		v.addf("spec.externalName", "missing; a service of type ExternalName is another name for it")
	}
	v.add("spec.externalName", s.ExternalName, validation.IsDNS1123Subdomain(strings.TrimSuffix(s.ExternalName, ".")))
	switch {
	case len(s.ClusterIPs) > 0 || s.ClusterIP != "":
		v.addf("spec.clusterIP", "%q in a service of type ExternalName, which has no address; want none", s.ClusterIP)
	case len(s.IPFamilies) > 0:
		v.addf("spec.ipFamilies", "%v in a service of type ExternalName, which has no address; want none", s.IPFamilies)
	case s.IPFamilyPolicy != nil:
		v.addf("spec.ipFamilyPolicy", "%q in a service of type ExternalName, which has no address; want none", *s.IPFamilyPolicy)
	}
}

func (v *invalid) servicePorts(s *corev1.ServiceSpec) {
	if len(s.Ports) == 0 && !isHeadless(s) && s.Type != corev1.ServiceTypeExternalName {
		v.addf("spec.ports", "empty; a service with a ClusterIP needs a port")
	}
	names := map[string]bool{}
	type listener struct {
		proto corev1.Protocol
		port  int32
	}
	ports, nodePorts := map[listener]bool{}, map[listener]bool{}
	for i := range s.Ports {
		p := &s.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		if _, ok := protocolOf(p.Protocol); !ok {
			v.addf(field+".protocol", "%q is not known; want TCP, UDP or SCTP", p.Protocol)
		}
		v.add(field+".port", p.Port, validation.IsValidPortNum(int(p.Port)))
		switch {
		case p.TargetPort.StrVal != "":
			v.add(field+".targetPort", p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal))
		case p.TargetPort.IntVal != 0:
			v.add(field+".targetPort", p.TargetPort.IntVal, validation.IsValidPortNum(int(p.TargetPort.IntVal)))
		}
		switch {
		case p.Name == "" && len(s.Ports) > 1:
			v.addf(field+".name", "missing; a service with several ports names each")
		case p.Name != "":
			v.add(field+".name", p.Name, validation.IsDNS1123Label(p.Name))
		}
		if names[p.Name] {
			v.addf(field+".name", "%q is another port's already", p.Name)
		}
		names[p.Name] = true
		if at := (listener{p.Protocol, p.Port}); ports[at] {
			v.addf(field+".port", "%s %d is another port's already", p.Protocol, p.Port)
		} else {
			ports[at] = true
		}
		if p.NodePort == 0 {
			continue
		}
		if !hasNodePorts(s) {
			v.addf(field+".nodePort", "%d in a service of type %s; want type NodePort or LoadBalancer", p.NodePort, s.Type)
		}
		if at := (listener{p.Protocol, p.NodePort}); nodePorts[at] {
			v.addf(field+".nodePort", "%s %d is another port's already", p.Protocol, p.NodePort)
		} else {
			nodePorts[at] = true
		}
	}
}

func (v *invalid) clusterIPs(s *corev1.ServiceSpec) {
	if isHeadless(s) {
		if len(s.ClusterIPs) > 1 {
			v.addf("spec.clusterIPs", "%q beside others; a headless service has no address", corev1.ClusterIPNone)
		}
		if s.Type != "" && s.Type != corev1.ServiceTypeClusterIP {
			v.addf("spec.clusterIP", "%q in a service of type %s; want type ClusterIP", corev1.ClusterIPNone, s.Type)
		}
		return
	}
	if len(s.ClusterIPs) > 2 {
		v.addf("spec.clusterIPs", "%d addresses; want at most one of each family", len(s.ClusterIPs))
	}
	if len(s.ClusterIPs) > 0 && s.ClusterIP != s.ClusterIPs[0] {
		v.addf("spec.clusterIP", "%q is not the first of spec.clusterIPs, %q", s.ClusterIP, s.ClusterIPs[0])
	}
	var families [2]bool
	for i, ip := range s.ClusterIPs {
		field := fmt.Sprintf("spec.clusterIPs[%d]", i)
		a, err := netip.ParseAddr(ip)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			v.addf(field, "%q is not an IP address; want one, or %q", ip, corev1.ClusterIPNone)
			continue
		}
		v.family(field, a.Is6(), &families)
		if i < len(s.IPFamilies) && familyOf(a) != s.IPFamilies[i] {
			v.addf(field, "%q is not of family %s, as spec.ipFamilies[%d] says", ip, s.IPFamilies[i], i)
		}
	}
	families = [2]bool{}
	for i, f := range s.IPFamilies {
		field := fmt.Sprintf("spec.ipFamilies[%d]", i)
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			v.addf(field, "%q is not known; want IPv4 or IPv6", f)
			continue
		}
		v.family(field, f == corev1.IPv6Protocol, &families)
	}
	if p := s.IPFamilyPolicy; p != nil {
		switch *p {
		case corev1.IPFamilyPolicySingleStack:
			if len(s.IPFamilies) > 1 || len(s.ClusterIPs) > 1 {
				v.addf("spec.ipFamilyPolicy", "SingleStack with two families; want PreferDualStack or RequireDualStack")
			}
		case corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack:
		default:
			v.addf("spec.ipFamilyPolicy", "%q is not known; want SingleStack, PreferDualStack or RequireDualStack", *p)
		}
	}
}

func (v *invalid) family(field string, ipv6 bool, seen *[2]bool) {
	i := 0
	if ipv6 {
		i = 1
	}
	if seen[i] {
		v.addf(field, "second of its family; want at most one of each")
	}
	seen[i] = true
}

func (v *invalid) policies(s *corev1.ServiceSpec) {
	switch s.ExternalTrafficPolicy {
	case "", corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal:
	default:
		v.addf("spec.externalTrafficPolicy", "%q is not known; want Cluster or Local", s.ExternalTrafficPolicy)
	}
	if p := s.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
		v.addf("spec.internalTrafficPolicy", "%q is not known; want Cluster or Local", *p)
	}
	if d := s.TrafficDistribution; d != nil && !knownDistribution(*d) {
		v.addf("spec.trafficDistribution", "%q is not known; want %s", *d, strings.Join(knownDistributions, ", "))
	}
	switch s.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		if s.SessionAffinityConfig != nil {
			v.addf("spec.sessionAffinityConfig", "given with sessionAffinity None; want ClientIP, or none")
		}
	case corev1.ServiceAffinityClientIP:
		if t := affinitySeconds(s); t < 1 || t > maxAffinitySeconds {
			v.addf("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d; want 1 to %d", t, maxAffinitySeconds)
		}
	default:
		v.addf("spec.sessionAffinity", "%q is not known; want None or ClientIP", s.SessionAffinity)
	}
}

// outside checks what says how clients outside the cluster come in.
func (v *invalid) outside(s *corev1.ServiceSpec) {
	for i, text := range s.ExternalIPs {
		field := fmt.Sprintf("spec.externalIPs[%d]", i)
		if a, err := netip.ParseAddr(text); err != nil {
			v.addf(field, "%q is not an IP address", text)
		} else if err := refuseSpecial(a); err != nil {
			v.addf(field, "%v", err)
		}
	}
	if len(s.ExternalIPs) > 0 && (isHeadless(s) || s.Type == corev1.ServiceTypeExternalName) {
		v.addf("spec.externalIPs", "%v in a service without an address; want none, or a ClusterIP", s.ExternalIPs)
	}
	if s.ExternalTrafficPolicy != "" && !hasNodePorts(s) && len(s.ExternalIPs) == 0 {
		v.addf("spec.externalTrafficPolicy", "%q in a service that clients outside don't reach; want type NodePort or LoadBalancer, or externalIPs", s.ExternalTrafficPolicy)
	}
	if s.HealthCheckNodePort != 0 && !needsHealthCheck(s) {
		v.addf("spec.healthCheckNodePort", "%d; want none except with type LoadBalancer and externalTrafficPolicy Local", s.HealthCheckNodePort)
	}
}

// balancer checks the fields that only a LoadBalancer has.
func (v *invalid) balancer(s *corev1.ServiceSpec) {
	if s.Type != corev1.ServiceTypeLoadBalancer {
		for _, f := range []struct {
			name  string
			given bool
		}{
			{"loadBalancerIP", s.LoadBalancerIP != ""},
			{"loadBalancerSourceRanges", len(s.LoadBalancerSourceRanges) > 0},
			{"loadBalancerClass", s.LoadBalancerClass != nil},
			{"allocateLoadBalancerNodePorts", s.AllocateLoadBalancerNodePorts != nil},
		} {
			if f.given {
				v.addf("spec."+f.name, "given in a service of type %s; want type LoadBalancer", s.Type)
			}
		}
		return
	}
	if s.LoadBalancerIP != "" {
		if a, err := netip.ParseAddr(s.LoadBalancerIP); err != nil {
			v.addf("spec.loadBalancerIP", "%q is not an IP address", s.LoadBalancerIP)
		} else if err := refuseSpecial(a); err != nil {
			v.addf("spec.loadBalancerIP", "%v", err)
		}
	}
	for i, text := range s.LoadBalancerSourceRanges {
		field := fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i)
		switch p, err := netip.ParsePrefix(strings.TrimSpace(text)); {
		case err != nil || p.Addr().Is4In6():
			v.addf(field, "%q is not a prefix such as 192.0.2.0/24", text)
		case p != p.Masked():
			v.addf(field, "%q has host bits set; want %s", text, p.Masked())
		}
	}
	if c := s.LoadBalancerClass; c != nil {
		v.add("spec.loadBalancerClass", *c, validation.IsQualifiedName(*c))
	}
}

// status checks the addresses that the owner of another load balancer class
// writes. Those of our own are not the user's to say, and are not looked at.
func (v *invalid) status(o *corev1.Service) {
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer || ours(&o.Spec) {
		return
	}
	for i, in := range o.Status.LoadBalancer.Ingress {
		field := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if in.IP == "" {
			continue // a name: nothing here resolves it
		}
		if a, err := netip.ParseAddr(in.IP); err != nil {
			v.addf(field+".ip", "%q is not an IP address", in.IP)
		} else if err := refuseSpecial(a); err != nil {
			v.addf(field+".ip", "%v", err)
		}
		if m := in.IPMode; m != nil && *m != corev1.LoadBalancerIPModeVIP && *m != corev1.LoadBalancerIPModeProxy {
			v.addf(field+".ipMode", "%q is not known; want VIP or Proxy", *m)
		}
	}
}

// annotations checks those that are vswitch's own: a mistyped one would be a wish
// not granted and not refused.
func (v *invalid) annotations(o *corev1.Service) {
	for _, name := range slices.Sorted(maps.Keys(o.Annotations)) { // the same one first on every node
		if strings.HasPrefix(name, annotationPrefix) && name != AnnotationMode && name != AnnotationProxyProtocol {
			v.addf("metadata.annotations["+name+"]", "not known; want %s or %s", AnnotationMode, AnnotationProxyProtocol)
		}
	}
	mode, proxied := o.Annotations[AnnotationMode]
	if proxied {
		field := "metadata.annotations[" + AnnotationMode + "]"
		switch {
		case mode != ModeProxy:
			v.addf(field, "%q is not known; want %q, or leave it out", mode, ModeProxy)
		case isHeadless(&o.Spec) || o.Spec.Type == corev1.ServiceTypeExternalName:
			v.addf(field, "%q in a service without an address, which nothing can stand in front of", mode)
		case !hasProtocol(&o.Spec, TCP):
			v.addf(field, "%q in a service without a TCP port; only TCP can be proxied", mode)
		}
	}
	if version, ok := o.Annotations[AnnotationProxyProtocol]; ok {
		field := "metadata.annotations[" + AnnotationProxyProtocol + "]"
		switch {
		case version != ProxyProtocolV2:
			v.addf(field, "%q is not known; want %q, or leave it out", version, ProxyProtocolV2)
		case !proxied:
			v.addf(field, "given without %s: %s; want both", AnnotationMode, ModeProxy)
		}
	}
}

func hasProtocol(s *corev1.ServiceSpec, want Protocol) bool {
	for i := range s.Ports {
		if p, ok := protocolOf(s.Ports[i].Protocol); ok && p == want {
			return true
		}
	}
	return false
}

// hasNodePorts reports whether a service's type is one that node ports go with.
func hasNodePorts(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer
}
