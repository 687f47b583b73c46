package gateway

import "net/netip"

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
