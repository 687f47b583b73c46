package control

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Default fills in what a user may leave out and Kubernetes' own API server would
// fill in: namespace, protocols, target ports, session affinity's timeout.
func Default(o Object) {
	switch o := o.(type) {
	case *corev1.Service:
		defaultNamespace(o)
		defaultService(&o.Spec)
	case *discoveryv1.EndpointSlice:
		defaultNamespace(o)
	}
}

func defaultNamespace(o Object) {
	if o.GetNamespace() == "" {
		o.SetNamespace("default")
	}
}

func defaultService(s *corev1.ServiceSpec) {
	if s.Type == "" {
		s.Type = corev1.ServiceTypeClusterIP
	}
	if s.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		s.ClusterIP = s.ClusterIPs[0]
	}
	if len(s.ClusterIPs) == 0 && s.ClusterIP != "" {
		s.ClusterIPs = []string{s.ClusterIP}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort.IntVal == 0 && p.TargetPort.StrVal == "" {
			p.TargetPort.IntVal = p.Port
		}
	}
}

// invalid collects what is wrong with one object; the first finding wins.
type invalid struct {
	key Key
	err error
}

func (v *invalid) addf(field, format string, args ...any) {
	if v.err == nil {
		v.err = &InvalidError{Object: v.key, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
}

func (v *invalid) add(field string, value any, reasons []string) {
	if len(reasons) > 0 {
		v.addf(field, "%#v: %s", value, strings.Join(reasons, "; "))
	}
}

// Validate checks an object by itself: names, ports, selectors, addresses. The
// error is an *InvalidError. What needs other objects to judge (who else holds a
// ClusterIP, whose address an endpoint is) is checked where they are known.
func Validate(o Object) error {
	v := &invalid{key: KeyOf(o)}
	v.metadata(o)
	switch o := o.(type) {
	case *corev1.Service:
		v.service(o)
	case *discoveryv1.EndpointSlice:
		v.endpointSlice(o)
	case *corev1.Node:
		v.node(o)
	}
	return v.err
}

func (v *invalid) metadata(o Object) {
	if o.GetName() == "" {
		v.addf("metadata.name", "missing")
	}
	switch o.(type) {
	case *corev1.Service:
		v.add("metadata.name", o.GetName(), validation.IsDNS1035Label(o.GetName()))
	default:
		v.add("metadata.name", o.GetName(), validation.IsDNS1123Subdomain(o.GetName()))
	}
	if ns := o.GetNamespace(); v.key.Scope != "" && ns != "" {
		v.add("metadata.namespace", ns, validation.IsDNS1123Label(ns))
	}
	v.labels("metadata.labels", o.GetLabels())
}

func (v *invalid) labels(field string, labels map[string]string) {
	for k, val := range labels {
		v.add(field, k, validation.IsQualifiedName(k))
		v.add(field+"["+k+"]", val, validation.IsValidLabelValue(val))
	}
}

func (v *invalid) service(o *corev1.Service) {
	s := &o.Spec
	switch s.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
	default:
		v.addf("spec.type", "%q is not supported; want ClusterIP or NodePort", s.Type)
	}
	v.labels("spec.selector", s.Selector)
	v.servicePorts(s)
	v.clusterIPs(s)
	v.policies(s)
}

func (v *invalid) servicePorts(s *corev1.ServiceSpec) {
	if len(s.Ports) == 0 && !isHeadless(s) {
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
		if s.Type != corev1.ServiceTypeNodePort {
			v.addf(field+".nodePort", "%d in a service of type %s; want type NodePort", p.NodePort, s.Type)
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
		if s.Type == corev1.ServiceTypeNodePort {
			v.addf("spec.clusterIP", "%q in a service of type NodePort; want type ClusterIP", corev1.ClusterIPNone)
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
	switch s.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		if t := affinitySeconds(s); t < 1 || t > maxAffinitySeconds {
			v.addf("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d; want 1 to %d", t, maxAffinitySeconds)
		}
	default:
		v.addf("spec.sessionAffinity", "%q is not known; want None or ClientIP", s.SessionAffinity)
	}
}

const (
	defaultAffinitySeconds = 10800 // Kubernetes' default, three hours
	maxAffinitySeconds     = 86400
)

func affinitySeconds(s *corev1.ServiceSpec) int32 {
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return *c.ClientIP.TimeoutSeconds
	}
	return defaultAffinitySeconds
}

func isHeadless(s *corev1.ServiceSpec) bool {
	return s.ClusterIP == corev1.ClusterIPNone || len(s.ClusterIPs) > 0 && s.ClusterIPs[0] == corev1.ClusterIPNone
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}
