package fdpass

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"vswitch/internal/unixcall"
)

// Send passes m and fds to the server at path and waits for its answer, at most
// until ctx ends. The caller keeps its descriptors: the server gets duplicates. A
// *RefusedError is the server's own answer; after any other error it is not known
// whether the server took the descriptors.
func Send(ctx context.Context, path string, m Message, fds []int) error {
	if err := send(ctx, path, m, fds); err != nil {
		if refused := (*RefusedError)(nil); ctx.Err() != nil && !errors.As(err, &refused) {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("fdpass: send to %s: %w", path, err)
	}
	return nil
}

func send(ctx context.Context, path string, m Message, fds []int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := checkPacket(text, fds); err != nil {
		return err
	}
	conn, err := unixcall.Dial(ctx, unix.SOCK_SEQPACKET, path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.WritePacket(text, fds); err != nil {
		return err
	}
	return readReply(conn)
}

func readReply(conn io.Reader) error {
	buf := make([]byte, MaxMessageBytes)
	n, err := conn.Read(buf)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	var r reply
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if !r.OK {
		return &RefusedError{Text: r.Error}
	}
	return nil
}
