package dns

import (
	"net/netip"
	"strings"
)

// Zone knows the names of the cluster. It is asked by many goroutines at once,
// for every question, so that an answer must cost a look-up and no more. Names are
// in lower case. What it returns is shared and read only.
type Zone interface {
	// Service is a service by name; nil: there is none.
	Service(namespace, name string) *Service
	// HasNamespace reports whether some service is in the namespace.
	HasNamespace(namespace string) bool
	// Behind lists who has an address: services, and endpoints of headless ones.
	Behind(netip.Addr) []Name
}

// Service is what a service's names lead to. Exactly one of the three cases holds:
// it has addresses, it is headless, or it stands for another name.
type Service struct {
	Namespace, Name string

	Addrs []netip.Addr // ClusterIPs
	Ports []Port       // at Addrs; those without a name have no record

	Headless  bool
	Endpoints []Endpoint // of a headless service: those to be published

	ExternalName string // a host name anywhere, without the last dot
}

// Port is a named port.
type Port struct {
	Name     string
	Protocol string // "tcp", "udp" or "sctp"
	Number   uint16
}

// Endpoint is one address behind a headless service.
type Endpoint struct {
	Addr     netip.Addr
	Hostname string // one label, unique to the pod: see HostnameOf
	Ports    []Port // as the endpoint itself has them
}

// Name is a service or, with a hostname, an endpoint of a headless one.
type Name struct {
	Service  *Service
	Hostname string
}

// HostnameOf is the hostname of an endpoint that was given none: its address, in
// letters that a host name may have.
func HostnameOf(a netip.Addr) string {
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	return strings.ReplaceAll(a.StringExpanded(), ":", "-") // short forms can end in a colon, and names not in "-"
}
