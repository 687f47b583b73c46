package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestChosenPorts(t *testing.T) {
	inUse := fmt.Errorf("bind: %w", unix.EADDRINUSE)
	other := errors.New("no such address")
	for _, tt := range []struct {
		name    string
		before  uint16
		seed    uint32
		sockets int
		taken   func(first, last uint16) error
		want    uint16
		all     bool // its further ports must be had
		err     error
	}{
		{name: "the first time", seed: 7, sockets: 4, want: firstOwnPort + 7*4, all: true},
		{name: "those of before", before: 20444, seed: 7, sockets: 4, want: 20444},
		{name: "those of before are another's", before: 20444, seed: 7, sockets: 4,
			taken: func(first, last uint16) error { return within(inUse, 20444, first, last) }, want: firstOwnPort + 7*4, all: true},
		{name: "one in a range is taken", seed: 0, sockets: 4,
			taken: func(first, last uint16) error { return within(inUse, firstOwnPort+3, first, last) }, want: firstOwnPort + 4, all: true},
		{name: "round the end", seed: 9999, sockets: 1,
			taken: func(first, last uint16) error { return within(inUse, lastOwnPort, first, last) }, want: firstOwnPort, all: true},
		{name: "never beyond the end", seed: 155, sockets: 64, want: firstOwnPort + 155*64, all: true},
		{name: "and then from the beginning", seed: 156, sockets: 64, want: firstOwnPort, all: true},
		{name: "another error is no reason to go on", seed: 1, sockets: 1, taken: func(_, _ uint16) error { return other },
			want: firstOwnPort + 1, all: true, err: other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var last uint16
			var lastAll bool
			port, err := choosePort(tt.before, tt.seed, tt.sockets, func(port uint16, all bool) error {
				last, lastAll = port, all
				if tt.taken == nil {
					return nil
				}
				return tt.taken(port, port+uint16(tt.sockets)-1)
			})
			if port != tt.want || last != port || lastAll != tt.all || !errors.Is(err, tt.err) {
				t.Errorf("port %d, opened %d (all %v), err %v; want %d (all %v), err %v", port, last, lastAll, err, tt.want, tt.all, tt.err)
			}
			if int(port)+tt.sockets-1 > lastOwnPort {
				t.Errorf("%d ports from %d end beyond %d", tt.sockets, port, lastOwnPort)
			}
		})
	}
}

// within is err if port is in the range.
func within(err error, port, first, last uint16) error {
	if first <= port && port <= last {
		return err
	}
	return nil
}

func TestNoPortIsFree(t *testing.T) {
	_, err := choosePort(0, 5, 4, func(uint16, bool) error { return unix.EADDRINUSE })
	if err == nil || !strings.Contains(err.Error(), "--udp-port PORT") {
		t.Errorf("got %v", err)
	}
}

// TestNodesOfOneAddressChooseTheirPorts: two daemons that are told no port run at one
// address, and each has its ports again after a restart; unless another program has
// them by then.
func TestNodesOfOneAddressChooseTheirPorts(t *testing.T) {
	a, b := newConfig(t), newConfig(t)
	a.UDPPort, b.UDPPort, b.Node = 0, 0, "b"
	first, second := start(t, a), start(t, b)
	at, bt := tunnelOf(t, first.waitReady(t)), tunnelOf(t, second.waitReady(t))
	if at == bt {
		t.Fatalf("both are at %v", at)
	}
	first.end(t)
	first = start(t, a)
	if again := tunnelOf(t, first.waitReady(t)); again != at {
		t.Errorf("after a restart it is at %v, before at %v", again, at)
	}
	first.end(t)
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first = start(t, a)
	again := tunnelOf(t, first.waitReady(t))
	if again == at || again == bt {
		t.Errorf("it is at %v, which another has", again)
	}
	first.end(t)
	second.end(t)
}

// tunnelOf reads the tunnel's address off the ready line.
func tunnelOf(t *testing.T, line string) netip.AddrPort {
	t.Helper()
	f := strings.Fields(line)
	for i, word := range f {
		if word == "vxlan" && i+1 < len(f) {
			at, err := netip.ParseAddrPort(f[i+1])
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
	}
	t.Fatalf("no tunnel in %q", line)
	return netip.AddrPort{}
}
