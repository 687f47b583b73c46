//go:build linux

package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vswitch/vswitch/drop"
)

// ErrBadGSO is wrapped by what VerifyGSO returns when trains don't arrive as
// they were sent. Linux 6.6.44 refuses them, some 7.x kernels corrupt headers.
var ErrBadGSO = errors.New("udp: segmentation offload is broken in this kernel")

// verifyWaitMillis bounds the wait for a datagram to ourselves, which the kernel
// delivers within the send call.
const verifyWaitMillis = 200

// VerifyGSO sends a train from a local address to itself and checks that it
// arrives in the right pieces. It returns nil where trains work or where nothing
// could be learnt (the host does not deliver to itself).
func VerifyGSO(local netip.Addr) error {
	to, err := Listen(Config{Local: netip.AddrPortFrom(local, 0), BufferBytes: 64 << 10})
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := Listen(Config{Local: netip.AddrPortFrom(local, 0), BufferBytes: 64 << 10, Offload: true})
	if err != nil {
		return err
	}
	defer from.Close()
	if !from.gso {
		return nil
	}

	const size = 1000
	pattern := make([]byte, 3*size+size/2)
	for i := range pattern {
		pattern[i] = byte(i * 7 >> 3)
	}
	dest := NewDest(to.Local())
	var lost drop.Reason
	from.Stage(dest, 0, pattern[:size], nil, &lost)
	from.Flush()
	if got, err := to.collect(size); err != nil || lost != drop.None || len(got) != 1 {
		return nil
	}
	for at := 0; at < len(pattern); at += size {
		piece := pattern[at:min(at+size, len(pattern))]
		from.Stage(dest, 0, piece[:50], piece[50:], &lost)
	}
	from.Flush()
	got, err := to.collect(len(pattern))
	switch {
	case from.Stats().GSORefused > 0:
		return fmt.Errorf("%w: refused", ErrBadGSO)
	case err != nil:
		return err
	case len(got) != 4 || !bytes.Equal(bytes.Join(got, nil), pattern):
		return fmt.Errorf("%w: sent 4 datagrams, %d bytes; received %d, %d bytes, or changed ones",
			ErrBadGSO, len(pattern), len(got), len(bytes.Join(got, nil)))
	}
	return nil
}

// collect receives datagrams until they add up to n bytes or none comes.
func (c *Conn) collect(n int) ([][]byte, error) {
	var got [][]byte
	for n > 0 {
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		ready, err := unix.Poll(fds, verifyWaitMillis)
		if err == unix.EINTR {
			continue
		}
		if err != nil || ready == 0 {
			return got, err
		}
		k, err := c.Receive()
		if err != nil {
			return got, err
		}
		for i := range k {
			got = append(got, bytes.Clone(c.Message(i).Data))
			n -= len(c.Message(i).Data)
		}
	}
	return got, nil
}
