package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// localTimeout is far beyond what is waited for, a work item of the kernel.
	localTimeout = 5 * time.Second
	// localPause is between two looks at it.
	localPause = 100 * time.Microsecond
)

// AwaitAddresses waits until the kernel takes packets to all of an interface's addresses.
func AwaitAddresses(s *Spec) error {
	for _, a := range s.Addrs {
		if err := awaitLocal(a.Addr); err != nil {
			return err
		}
	}
	return nil
}

// awaitLocal waits until the kernel takes packets to an address. Linux enters the
// local route of an IPv6 address that is spared duplicate detection from a
// workqueue (net/ipv6/addrconf.c, addrconf_dad_completed), a moment after the
// address can be seen and sent from; an answer that comes first is lost.
func awaitLocal(addr netip.Addr) error {
	fd, err := openNetlink()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for start := time.Now(); ; time.Sleep(localPause) {
		local, err := isLocal(fd, addr)
		if local {
			return nil
		}
		if time.Since(start) > localTimeout {
			return errors.Join(fmt.Errorf("address %s: the kernel takes nothing for it after %v", addr, localTimeout), err)
		}
	}
}

// isLocal asks where packets to an address go (RTM_GETROUTE, rtnetlink(7)).
func isLocal(fd int, addr netip.Addr) (bool, error) {
	m := &nl.RtMsg{}
	m.Family, m.Dst_len = unix.AF_INET, uint8(addr.BitLen())
	if addr.Is6() {
		m.Family = unix.AF_INET6
	}
	r := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	r.Data = []nl.NetlinkRequestData{m, nl.NewRtAttr(unix.RTA_DST, addr.AsSlice())}
	if err := sendNetlink(fd, r.Serialize()); err != nil {
		return false, err
	}
	in := make([]byte, unix.Getpagesize())
	n, err := receiveNetlink(fd, in)
	if err != nil {
		return false, err
	}
	if n >= unix.SizeofNlMsghdr+unix.SizeofRtMsg && binary.NativeEndian.Uint16(in[4:]) == unix.RTM_NEWROUTE {
		return nl.DeserializeRtMsg(in[unix.SizeofNlMsghdr:n]).Type == unix.RTN_LOCAL, nil
	}
	_, errno, err := decodeAnswer(in[:n])
	if err == nil {
		err = errno
	}
	return false, err
}
