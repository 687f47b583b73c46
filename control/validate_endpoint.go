package control

import (
	"fmt"
	"net/netip"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func (v *invalid) endpointSlice(o *discoveryv1.EndpointSlice) {
	switch o.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		v.addf("addressType", "%q is not supported; want IPv4 or IPv6", o.AddressType)
	}
	if o.Labels[discoveryv1.LabelServiceName] == "" {
		v.addf("metadata.labels", "no %s; it names the service the endpoints belong to", discoveryv1.LabelServiceName)
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if len(e.Addresses) == 0 {
			v.addf(fmt.Sprintf("endpoints[%d].addresses", i), "empty; want one address")
		}
		for j, a := range e.Addresses {
			if _, err := endpointAddr(o.AddressType, a); err != nil {
				v.addf(fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), "%v", err)
			}
		}
	}
	for i := range o.Ports {
		p := &o.Ports[i]
		field := fmt.Sprintf("ports[%d]", i)
		if p.Protocol != nil {
			if _, ok := protocolOf(*p.Protocol); !ok {
				v.addf(field+".protocol", "%q is not known; want TCP, UDP or SCTP", *p.Protocol)
			}
		}
		if p.Port == nil {
			v.addf(field+".port", "missing")
		} else {
			v.add(field+".port", *p.Port, validation.IsValidPortNum(int(*p.Port)))
		}
	}
}

// endpointAddr reads the address of an endpoint a user wrote, and refuses those
// that would lead a client's packets into the node itself or nowhere
// (CVE-2021-25737; Kubernetes' ValidateNonSpecialIP refuses the same).
func endpointAddr(t discoveryv1.AddressType, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a, judgeEndpoint(t, a)
}

// judgeEndpoint is endpointAddr of an address that can be read.
func judgeEndpoint(t discoveryv1.AddressType, a netip.Addr) error {
	// A v4-mapped address is judged as the address a socket would use.
	switch u := a.Unmap(); {
	case u.IsUnspecified():
		return fmt.Errorf("%q is the unspecified address; want a pod's or a host's", a)
	case u.IsLoopback():
		return fmt.Errorf("%q is a loopback address; want a pod's or a host's", a)
	case u.IsLinkLocalUnicast():
		return fmt.Errorf("%q is a link-local address; want a pod's or a host's", a)
	case u.IsMulticast():
		return fmt.Errorf("%q is a multicast address; want a pod's or a host's", a)
	case u == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%q is the broadcast address; want a pod's or a host's", a)
	case a.Is4In6():
		return fmt.Errorf("%q is an IPv4 address in IPv6 form; want %q in a slice of addressType IPv4", a, u)
	}
	if want := t == discoveryv1.AddressTypeIPv6; a.Is6() != want {
		return fmt.Errorf("%q is not of addressType %s", a, t)
	}
	return nil
}
