package frame

import (
	"fmt"
	"net"
)

// MAC is a 48-bit Ethernet address (IEEE 802-2014 section 8), comparable and
// usable as a map key.
type MAC [6]byte

// Broadcast is the all-ones address.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads the colon form "02:00:5e:00:00:01".
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, fmt.Errorf("frame: parse MAC %q: %w", s, err)
	}
	if len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("frame: parse MAC %q: %d bytes, want 6", s, len(hw))
	}
	return MAC(hw), nil
}

// IsMulticast reports whether the group bit is set; broadcast counts.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// IsZero reports whether m is the all-zero address.
func (m MAC) IsZero() bool { return m == MAC{} }

// String returns the lower-case colon form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText and UnmarshalText give MAC its text form in JSON and YAML.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the colon form.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// LocalMAC makes a locally administered unicast address (IEEE 802-2014 section
// 8.4, bits U/L set and I/G clear) out of the first six bytes of seed.
func LocalMAC(seed [6]byte) MAC {
	m := MAC(seed)
	m[0] = m[0]&^1 | 2
	return m
}
