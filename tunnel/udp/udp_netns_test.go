//go:build linux

package udp_test

import (
	"net/netip"
	"testing"

	"vswitch/tunnel/netnstest"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
)

// Datagrams to a neighbour that does not answer wait in the kernel, charged to
// the socket: its buffer fills, and what has no room is lost with that reason.
func TestFullSocketLosesWithAReason(t *testing.T) {
	netnstest.RequireRoot(t)
	here, there := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, "underlay", 1500, here, "192.0.2.1/24", there, "")
	var c *udp.Conn
	netnstest.Do(t, here, func() (err error) {
		c, err = udp.Listen(udp.Config{Local: netip.MustParseAddrPort("192.0.2.1:0"), BufferBytes: 8192})
		return err
	})
	defer c.Close()
	dest := udp.NewDest(netip.MustParseAddrPort("192.0.2.9:9"))
	lost := make([]drop.Reason, 60)
	for i := range lost {
		c.Stage(dest, 0, make([]byte, 1400), nil, &lost[i])
	}
	c.Flush()
	full := 0
	for i, r := range lost {
		switch r {
		case drop.EgressFull:
			full++
		case drop.None:
			if full > 0 {
				t.Fatalf("datagram %d was sent after one before it was lost", i)
			}
		default:
			t.Fatalf("datagram %d: %v", i, r)
		}
	}
	if full == 0 || full == len(lost) {
		t.Errorf("%d of %d datagrams found no room", full, len(lost))
	}
	if n := c.Stats().SendFull; n != 2 {
		t.Errorf("the kernel was asked again %d times after it had no room, want once", n-1)
	}
}

// A train whose datagrams exceed the device's MTU is too big, not refused: trains
// that fit still go to that destination.
func TestTooBigForTheDevice(t *testing.T) {
	netnstest.RequireRoot(t)
	here, there := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, "underlay", 1500, here, "192.0.2.1/24", there, "192.0.2.2/24")
	var from, to *udp.Conn
	netnstest.Do(t, here, func() (err error) {
		from, err = udp.Listen(udp.Config{Local: netip.MustParseAddrPort("192.0.2.1:0"), Offload: true})
		return err
	})
	defer from.Close()
	netnstest.Do(t, there, func() (err error) {
		to, err = udp.Listen(udp.Config{Local: netip.MustParseAddrPort("192.0.2.2:0"), Offload: true})
		return err
	})
	defer to.Close()
	dest := udp.NewDest(to.Local())
	for _, tt := range []struct {
		bytes int
		want  drop.Reason
	}{{1473, drop.TooBig}, {1472, drop.None}} {
		lost := make([]drop.Reason, 5)
		for i := range lost {
			from.Stage(dest, 0, make([]byte, tt.bytes), nil, &lost[i])
		}
		from.Flush()
		for i, r := range lost {
			if r != tt.want {
				t.Errorf("datagram %d of %d bytes: %v, want %v", i, tt.bytes, r, tt.want)
			}
		}
	}
	if got, messages := receive(t, to, 5); len(got) != 5 || messages != 1 {
		t.Errorf("%d datagrams in %d messages, want 5 in 1", len(got), messages)
	}
	if n := from.Stats().GSORefused; n != 0 {
		t.Errorf("%d destinations without trains, want none", n)
	}
}
