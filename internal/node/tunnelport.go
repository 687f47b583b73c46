package node

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"vswitch/control/statefile"
	"vswitch/tunnel/vxlan"
)

// A node that is told no UDP port for its tunnel takes as many as it has sockets, one
// behind the other, from a range of ours, and publishes them. Where it begins to look
// follows from its state directory, so that the nodes of a host spread and one whose
// note of its ports is lost finds them again (ADR 23).
const (
	// firstOwnPort to lastOwnPort lie below NodePorts (30000) and the ports that the
	// kernel gives to programs that ask for any (32768, ip_local_port_range).
	firstOwnPort = 20000
	lastOwnPort  = 29999
)

// listenTunnel opens the tunnel at the port that was given, or at ports of the node's
// own choice: those it had before if they are free.
func (n *node) listenTunnel(c vxlan.Config) (*vxlan.Tunnel, error) {
	if c.Port != 0 {
		t, err := vxlan.New(c)
		if err != nil {
			return nil, fmt.Errorf("--udp-port %d, --underlay %s: %w", c.Port, join(c.Underlays), err)
		}
		return t, nil
	}
	file := statefile.File{Path: n.state.file(udpPortFile), Kind: "udp-port", Version: 1}
	var before uint16
	if err := file.Read(&before); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("the tunnel's UDP ports of before are not known", "err", err)
	}
	var t *vxlan.Tunnel
	port, err := choosePort(before, portSeed(n.instance), c.Sockets, func(port uint16, all bool) (err error) {
		c.Port, c.AllPorts = port, all
		t, err = vxlan.New(c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("--udp-port auto, --underlay %s: %w", join(c.Underlays), err)
	}
	if port == before {
		return t, nil
	}
	n.log.Info("UDP ports chosen for the tunnel", "first", port, "before", before)
	if err := file.Write(port); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// portSeed is a number that follows from a state directory's instance.
func portSeed(instance string) uint32 {
	sum := sha256.Sum256([]byte("vswitch udp ports " + instance))
	return binary.BigEndian.Uint32(sum[:])
}

// choosePort opens before and, should another program have it or before be zero, the
// first of the ranges of sockets ports whose ports are all free, beginning with the one
// that seed says.
func choosePort(before uint16, seed uint32, sockets int, open func(port uint16, all bool) error) (uint16, error) {
	if before != 0 {
		if err := open(before, false); !errors.Is(err, unix.EADDRINUSE) {
			return before, err
		}
	}
	ranges := uint32((lastOwnPort - firstOwnPort + 1) / sockets)
	for i := range ranges {
		port := firstOwnPort + uint16((seed+i)%ranges)*uint16(sockets)
		if err := open(port, true); !errors.Is(err, unix.EADDRINUSE) {
			return port, err
		}
	}
	return 0, fmt.Errorf("no %d UDP ports behind one another are free from %d to %d; want --udp-port PORT", sockets, firstOwnPort, lastOwnPort)
}
