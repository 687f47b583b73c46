package fdpass

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// receive reads one message. On error every descriptor that came with it is
// closed; else they are the caller's.
func receive(conn *net.UnixConn) (m Message, fds []int, err error) {
	text, fds, err := ReadPacket(conn)
	if err != nil {
		return Message{}, nil, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		closeAll(fds)
		return Message{}, nil, fmt.Errorf("read message: %w", err)
	}
	return m, fds, nil
}

// PacketError says what was wrong with one packet. The next may be read.
type PacketError struct{ Cause error }

func (e *PacketError) Error() string { return e.Cause.Error() }
func (e *PacketError) Unwrap() error { return e.Cause }

// ReadPacket reads one packet of a SOCK_SEQPACKET connection and the descriptors
// beside it, which are then the caller's. On error, a *PacketError or that of the
// connection, every descriptor that came is closed. The kernel sets close-on-exec as it installs them (MSG_CMSG_CLOEXEC,
// which net always asks for).
func ReadPacket(conn *net.UnixConn) (text []byte, fds []int, err error) {
	text = make([]byte, MaxMessageBytes+1)
	control := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, controlBytes, flags, _, err := conn.ReadMsgUnix(text, control)
	// Descriptors may come with an error too: an empty message reads as EOF.
	fds, rightsErr := parseRights(control[:controlBytes])
	switch {
	case err != nil:
		err = fmt.Errorf("read message: %w", err)
	case rightsErr != nil:
		err = &PacketError{rightsErr}
	case flags&unix.MSG_CTRUNC != 0:
		err = &PacketError{fmt.Errorf("descriptors lost: more than %d, or the receiver has none to spare", MaxFDs)}
	case flags&unix.MSG_TRUNC != 0 || n > MaxMessageBytes:
		err = &PacketError{fmt.Errorf("message longer than %d bytes", MaxMessageBytes)}
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return text[:n], fds, nil
}

// WritePacket sends one packet with duplicates of fds beside it.
func WritePacket(conn *net.UnixConn, text []byte, fds []int) error {
	if err := checkPacket(text, fds); err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix(text, rights, nil)
	return err
}

// checkPacket refuses what a receiver would.
func checkPacket(text []byte, fds []int) error {
	if len(text) > MaxMessageBytes {
		return fmt.Errorf("message of %d bytes, at most %d", len(text), MaxMessageBytes)
	}
	if len(fds) > MaxFDs {
		return fmt.Errorf("%d descriptors, at most %d", len(fds), MaxFDs)
	}
	return nil
}

// parseRights collects the descriptors of every SCM_RIGHTS item, so that none is
// lost even where another item can't be read.
func parseRights(control []byte) (fds []int, err error) {
	items, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	for i := range items {
		if items[i].Header.Level != unix.SOL_SOCKET || items[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, e := unix.ParseUnixRights(&items[i])
		fds = append(fds, more...)
		err = errors.Join(err, e)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
