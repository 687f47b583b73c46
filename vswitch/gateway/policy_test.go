package gateway

import (
	"net/netip"
	"testing"
)

// TestPodsDoNotConnectToTheStore is case 44 for a store that nodes reach over
// the network.
func TestPodsDoNotConnectToTheStore(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.2")
	loopback := netip.MustParseAddr("10.0.2.2")
	own := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	p := newPolicy(&Config{
		HostAddrs:    func() ([]netip.Addr, error) { return own, nil },
		DeniedTCP:    []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:2379"), netip.MustParseAddrPort("0.0.0.0:2479")},
		IsNode:       func(a netip.Addr) bool { return a == node },
		HostLoopback: []netip.Addr{loopback},
	})
	tests := []struct {
		name, dst string
		want      bool
	}{
		{"the store", "198.51.100.1:2379", false},
		{"another port of its host", "198.51.100.1:2380", true},
		{"its port on this node, as by a listener on all addresses", "192.0.2.1:2379", false},
		{"in the other family", "[2001:db8::1]:2479", false},
		{"on another node", "192.0.2.2:2479", false},
		{"by way of the host's loopback", "10.0.2.2:2379", false},
		{"its port somewhere in the world", "203.0.113.1:2379", true},
		{"another port of this node", "192.0.2.1:443", true},
		{"what nobody reaches", "127.0.0.1:443", false},
	}
	for _, tt := range tests {
		if _, ok := p.egressTCP(netip.MustParseAddrPort(tt.dst)); ok != tt.want {
			t.Errorf("%s: %s reached: %v, want %v", tt.name, tt.dst, ok, tt.want)
		}
	}
}
