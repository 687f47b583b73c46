package apiv1

import (
	"context"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vswitch/control/api"
)

// Client is a connection to a daemon and its calls. Safe for concurrent use.
type Client struct {
	NodeClient
	conn  *grpc.ClientConn
	first *firstConn
}

// firstConn is the connection Dial made to see whether anyone listens, until
// gRPC takes it.
type firstConn struct {
	mu   sync.Mutex
	conn net.Conn
}

// take returns the connection to the first caller and nil to the others.
func (f *firstConn) take() net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.conn
	f.conn = nil
	return c
}

// Dial connects to the daemon listening on socket. It fails at once, with the
// system call's error within, when nothing listens there: errors.Is with
// syscall.ENOENT or ECONNREFUSED means that the daemon is down, and EACCES that
// the socket is another user's. A daemon that goes away later shows as
// codes.Unavailable on a call.
func Dial(ctx context.Context, socket string) (*Client, error) {
	if err := api.CheckSocketPath(socket); err != nil {
		return nil, err
	}
	// gRPC connects lazily and hides the cause: connect first, and let it have
	// this connection as its first transport.
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	c := &Client{first: &firstConn{conn: conn}}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		if conn := c.first.take(); conn != nil {
			return conn, nil
		}
		return d.DialContext(ctx, "unix", socket)
	}
	// passthrough: the path is never parsed as a URL.
	c.conn, err = grpc.NewClient("passthrough:///daemon",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("daemon %s: %w", socket, err)
	}
	c.NodeClient = NewNodeClient(c.conn)
	return c, nil
}

// Close ends the connection; calls in progress fail.
func (c *Client) Close() error {
	err := c.conn.Close()
	if first := c.first.take(); first != nil {
		first.Close()
	}
	return err
}
