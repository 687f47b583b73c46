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
