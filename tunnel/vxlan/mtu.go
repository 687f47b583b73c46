//go:build linux

package vxlan

import (
	"fmt"
	"net"
	"net/netip"
)

// minPodMTUBytes is the least a pod link may have: IPv6 needs 1280 (RFC 8200 section 5).
const minPodMTUBytes = 1280

// Overhead is what encapsulation towards an underlay address of this family adds.
func Overhead(underlay netip.Addr) int {
	if underlay.Unmap().Is4() {
		return OverheadV4Bytes
	}
	return OverheadV6Bytes
}

// PodMTU is the largest MTU of pods whose packets must all fit the links that
// carry the underlay addresses: the least, over them, of link MTU minus overhead.
// A result below 1280, which IPv6 could not use, is an error.
func PodMTU(underlays ...netip.Addr) (int, error) {
	// A frame holds no more than 65,535 bytes of IP packet, and a datagram 65,507 of payload.
	podMTU := 65535 - OverheadV6Bytes
	for _, a := range underlays {
		link, err := LinkMTU(a)
		if err != nil {
			return 0, err
		}
		podMTU = min(podMTU, link-Overhead(a))
	}
	if podMTU < minPodMTUBytes {
		return 0, fmt.Errorf("vxlan: underlay leaves %d bytes of MTU to pods: want at least %d", podMTU, minPodMTUBytes)
	}
	return podMTU, nil
}

// LinkMTU is the MTU of the network interface that has the address.
func LinkMTU(a netip.Addr) (int, error) {
	links, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("vxlan: list interfaces: %w", err)
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // the link vanished meanwhile
		}
		for _, addr := range addrs {
			n, ok := addr.(*net.IPNet)
			if !ok {
				continue
			}
			if have, ok := netip.AddrFromSlice(n.IP); ok && have.Unmap() == a.Unmap() {
				return link.MTU, nil
			}
		}
	}
	return 0, fmt.Errorf("vxlan: no interface has underlay address %v", a)
}
