package api

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vswitch/internal/unixcall"
)

// Client calls the daemon that listens on a socket, over a connection for each call. Safe
// for concurrent use.
//
// A call fails at once, with the system call's error within, when nothing listens:
// errors.Is with syscall.ENOENT or ECONNREFUSED means that the daemon is down, and EACCES
// that the socket is another user's. Other errors are an *Error.
type Client struct{ Socket string }

// AddPod leases addresses for a new attachment.
func (c Client) AddPod(ctx context.Context, r *AddPodRequest) (*AddPodReply, error) {
	return call[AddPodReply](ctx, c.Socket, "AddPod", r)
}

// DelPod removes an attachment and frees its addresses.
func (c Client) DelPod(ctx context.Context, r *DelPodRequest) (*DelPodReply, error) {
	return call[DelPodReply](ctx, c.Socket, "DelPod", r)
}

// CheckPod reports what the daemon knows of one attachment.
func (c Client) CheckPod(ctx context.Context, r *CheckPodRequest) (*CheckPodReply, error) {
	return call[CheckPodReply](ctx, c.Socket, "CheckPod", r)
}

// Status says whether an AddPod made now would succeed.
func (c Client) Status(ctx context.Context, r *StatusRequest) (*StatusReply, error) {
	return call[StatusReply](ctx, c.Socket, "Status", r)
}

// GC removes every attachment of one network that is not in the list.
func (c Client) GC(ctx context.Context, r *GCRequest) (*GCReply, error) {
	return call[GCReply](ctx, c.Socket, "GC", r)
}

// ListAttachments lists attachments with what is needed to open their queues again.
func (c Client) ListAttachments(ctx context.Context, r *ListAttachmentsRequest) (*ListAttachmentsReply, error) {
	return call[ListAttachmentsReply](ctx, c.Socket, "ListAttachments", r)
}

// Version tells the daemon's build.
func (c Client) Version(ctx context.Context, r *VersionRequest) (*VersionReply, error) {
	return call[VersionReply](ctx, c.Socket, "Version", r)
}

// prefixBytes come before a message (gRPC over HTTP2, Length-Prefixed-Message): a byte that
// says whether it is compressed, and its length.
const prefixBytes = 5

func call[Reply any](ctx context.Context, socket, method string, request any) (*Reply, error) {
	if err := CheckSocketPath(socket); err != nil {
		return nil, err
	}
	conn, err := unixcall.Dial(ctx, unix.SOCK_STREAM, socket)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	defer conn.Close()

	body := append(make([]byte, prefixBytes), marshal(request)...)
	binary.BigEndian.PutUint32(body[1:], uint32(len(body)-prefixBytes))
	answer, err := newExchange(conn).do("/vswitch.v1.Node/"+method, body)
	if err == nil {
		err = answer.failure()
	}
	reply := new(Reply)
	if err == nil {
		err = answer.read(reply)
	}
	if err == nil {
		return reply, nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, &Error{Code: DeadlineExceeded, Cause: context.Cause(ctx)}
	}
	return nil, &Error{Code: Unavailable, Cause: err}
}

// answer is what came back on the stream.
type answer struct {
	headers map[string]string // trailers among them
	body    []byte
}

// failure is the daemon's refusal, or nil.
func (a *answer) failure() error {
	status := a.headers["grpc-status"]
	switch {
	case status == "0":
		return nil
	case status == "":
		return fmt.Errorf("not an answer of gRPC: HTTP status %q", a.headers[":status"])
	}
	code := Code(0)
	if _, err := fmt.Sscan(status, &code); err != nil {
		return fmt.Errorf("grpc-status %q: %w", status, err)
	}
	return &Error{Code: code, Message: unescape(a.headers["grpc-message"])}
}

func (a *answer) read(reply any) error {
	if len(a.body) < prefixBytes || a.body[0] != 0 || int(binary.BigEndian.Uint32(a.body[1:])) != len(a.body)-prefixBytes {
		return errMalformed
	}
	return unmarshal(a.body[prefixBytes:], reply)
}

// unescape undoes the percent-encoding of grpc-message. What isn't one stays.
func unescape(s string) string {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		var b byte
		if s[i] == '%' && i+2 < len(s) {
			if _, err := fmt.Sscanf(s[i+1:i+3], "%02X", &b); err == nil {
				out = append(out, b)
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
