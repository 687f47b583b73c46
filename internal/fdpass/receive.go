package fdpass

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// receive reads one message. On error every descriptor that came with it is
// closed; else they are the caller's. The kernel sets close-on-exec as it
// installs them (MSG_CMSG_CLOEXEC, which net always asks for).
func receive(conn *net.UnixConn) (m Message, fds []int, err error) {
	text := make([]byte, MaxMessageBytes+1)
	control := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, controlBytes, flags, _, err := conn.ReadMsgUnix(text, control)
	// Descriptors may come with an error too: an empty message reads as EOF.
	fds, rightsErr := parseRights(control[:controlBytes])
	switch {
	case err != nil:
		err = fmt.Errorf("read message: %w", err)
	case rightsErr != nil:
		err = rightsErr
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("descriptors lost: more than %d, or the receiver has none to spare", MaxFDs)
	case flags&unix.MSG_TRUNC != 0 || n > MaxMessageBytes:
		err = fmt.Errorf("message longer than %d bytes", MaxMessageBytes)
	default:
		if e := json.Unmarshal(text[:n], &m); e != nil {
			err = fmt.Errorf("read message: %w", e)
		}
	}
	if err != nil {
		closeAll(fds)
		return Message{}, nil, err
	}
	return m, fds, nil
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
