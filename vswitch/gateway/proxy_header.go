package gateway

import (
	"encoding/binary"
	"net/netip"
)

// The PROXY protocol, version 2 (haproxy's doc/proxy-protocol.txt, section 2.2):
// what an endpoint reads ahead of the client's first byte.
//
//	0           12        13        14       16          16+a          16+2a     18+2a     20+2a
//	+-----------+---------+---------+--------+-----------+-------------+---------+---------+
//	| signature | version | family  | length | source    | destination | source  | dest.   |
//	|           | command | and TCP | of the | address   | address     | port    | port    |
//	|           |         |         | rest   | (a bytes) |             |         |         |
//	+-----------+---------+---------+--------+-----------+-------------+---------+---------+
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 2<<4 | 1 // version 2, command PROXY
	proxyTCP4      = 1<<4 | 1 // AF_INET, SOCK_STREAM
	proxyTCP6      = 2<<4 | 1 // AF_INET6, SOCK_STREAM

	proxyFixedBytes = len(proxySignature) + 4
	proxyMaxBytes   = proxyFixedBytes + 2*16 + 2*2
)

// appendProxyHeader appends the header of a TCP connection that client made to
// asked, both of one family.
func appendProxyHeader(b []byte, client, asked netip.AddrPort) []byte {
	family, addrBytes := byte(proxyTCP4), 4
	if client.Addr().Is6() {
		family, addrBytes = proxyTCP6, 16
	}
	b = append(b, proxySignature...)
	b = append(b, proxyCommand, family)
	b = binary.BigEndian.AppendUint16(b, uint16(2*addrBytes+4))
	b = append(b, client.Addr().AsSlice()...)
	b = append(b, asked.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, asked.Port())
}
