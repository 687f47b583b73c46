package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// batch is a list of rtnetlink requests that goes to the kernel in one system call. The
// kernel carries them out in order before the call returns (net/netlink/af_netlink.c,
// netlink_rcv_skb), and goes on behind one that fails: who sends a batch undoes all of it
// after an error. Each request by itself would be two system calls and an answer to decode.
type batch []*change

// change is one request.
type change struct {
	*nl.NetlinkRequest
	what  string       // it does, for its error
	spare []unix.Errno // what it may fail with
}

// add asks for one thing more, of a kind (RTM_*).
func (b *batch) add(what string, kind, flags int, parts ...nl.NetlinkRequestData) *change {
	c := &change{NetlinkRequest: nl.NewNetlinkRequest(kind, flags), what: what}
	c.Data = parts
	*b = append(*b, c)
	return c
}

// send has the kernel carry out the requests, in the network namespace of the calling
// thread, and returns the first failure.
func (b batch) send() error {
	fd, err := openNetlink()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A failure is told unasked, so the last one's answer is behind all others'.
	last := b[len(b)-1]
	last.Flags |= unix.NLM_F_ACK
	var out []byte
	for _, c := range b {
		out = append(out, c.Serialize()...)
	}
	if err := sendNetlink(fd, out); err != nil {
		return err
	}
	var failure error
	for in := make([]byte, unix.Getpagesize()); ; {
		n, err := receiveNetlink(fd, in)
		if err != nil {
			return err
		}
		seq, errno, err := decodeAnswer(in[:n])
		if err != nil {
			return err
		}
		if errno != 0 && failure == nil {
			failure = b.failure(seq, errno)
		}
		if seq == last.Seq {
			return failure
		}
	}
}

// failure is the error of the request with that number, unless it may fail so.
func (b batch) failure(seq uint32, errno unix.Errno) error {
	i := slices.IndexFunc(b, func(c *change) bool { return c.Seq == seq })
	switch {
	case i < 0:
		return fmt.Errorf("netlink: an answer to nothing that was asked: %w", errno)
	case slices.Contains(b[i].spare, errno):
		return nil
	}
	return fmt.Errorf("%s: %w", b[i].what, errno)
}

// decodeAnswer reads an NLMSG_ERROR (netlink(7)). errno is zero where it acknowledges.
func decodeAnswer(in []byte) (seq uint32, errno unix.Errno, err error) {
	if len(in) < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(in[4:]) != unix.NLMSG_ERROR {
		return 0, 0, fmt.Errorf("netlink: %d bytes that are no answer to a change", len(in))
	}
	code := int32(binary.NativeEndian.Uint32(in[unix.SizeofNlMsghdr:]))
	return binary.NativeEndian.Uint32(in[8:]), unix.Errno(-code), nil
}

func openNetlink() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	// An answer need not repeat its request. Linux before 4.3 has it do so.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return fd, nil
}

func sendNetlink(fd int, out []byte) error {
	if err := unix.Sendto(fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	return nil
}

func receiveNetlink(fd int, in []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, in, 0)
		switch {
		case err == nil:
			return n, nil
		case !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("receive from netlink: %w", err)
		}
	}
}
