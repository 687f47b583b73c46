package keeper

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
)

// Client is a child's connection to its keeper. Its methods may be called from any
// goroutine.
type Client struct {
	conn   *net.UnixConn
	starts uint64
	mu     sync.Mutex // one exchange at a time
}

var _ fdstore.Store = (*Client)(nil)

// Connect takes the connection this process was born with; nil: it has no keeper.
func Connect() (*Client, error) {
	v, ok := os.LookupEnv(versionEnv)
	if !ok {
		return nil, nil
	}
	// Neither is for this process's own children.
	if err := os.Unsetenv(versionEnv); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if v != version {
		return nil, tellRefusal(fmt.Errorf("keeper: it speaks version %q of its protocol, this program %s: have another daemon take over with vswitch run --take-over, or restart the whole service", v, version))
	}
	unix.CloseOnExec(ConnFD)
	c, err := newClient(ConnFD)
	if err != nil {
		return nil, err
	}
	// A keeper of an older version does not say: 0.
	c.starts, _ = strconv.ParseUint(os.Getenv(startsEnv), 10, 64)
	return c, os.Unsetenv(startsEnv)
}

// Starts is how many children this one's keeper started before it.
func (c *Client) Starts() uint64 { return c.starts }

// newClient takes over fd.
func newClient(fd int) (*Client, error) {
	conn, err := fdpass.ConnOf(fd)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return &Client{conn: conn}, nil
}

// Close ends the connection. The keeper goes on holding what it has.
func (c *Client) Close() error { return c.conn.Close() }

// Begin waits until the process before this one is gone, so that all it held may be
// taken. It returns ctx's cause if that ends first; the client is then of no more use.
func (c *Client) Begin(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	_, _, err := c.ask(request{Op: opBegin}, nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Ready tells the keeper that this process forwards: from now on another is
// started in its place should it end.
func (c *Client) Ready() error {
	_, _, err := c.ask(request{Op: opReady}, nil)
	return err
}

// Renew asks the keeper for a planned restart: another process takes this one's
// place, which is told to hand over when that one is ready to begin.
func (c *Client) Renew() error {
	_, _, err := c.ask(request{Op: opRenew}, nil)
	return err
}

// Refused is why the last planned restart that was asked for came to nothing; empty:
// it did not, or nobody knows yet.
func (c *Client) Refused() (reason string, err error) {
	r, _, err := c.ask(request{Op: opRefused}, nil)
	return r.Reason, err
}

// Refuse tells the keeper why this process ends without having begun, and returns the
// reason. Nothing is done without a reason, or a keeper: c may be nil.
func (c *Client) Refuse(reason error) error {
	if c != nil && reason != nil {
		text := reason.Error()
		// A keeper that doesn't hear, or is too old to, has this process's exit code.
		_, _, _ = c.ask(request{Op: opRefuse, Reason: strings.ToValidUTF8(text[:min(len(text), maxReasonBytes)], "")}, nil)
	}
	return reason
}

// tellRefusal is Refuse for a keeper whose version is unknown here: should it understand
// nothing else, this it may.
func tellRefusal(reason error) error {
	c, err := newClient(ConnFD)
	if err != nil {
		return reason
	}
	defer c.Close()
	return c.Refuse(reason)
}

// Put implements fdstore.Store.
func (c *Client) Put(name string, fds []int) error {
	if err := fdstore.CheckName(name); err != nil {
		return err
	}
	_, _, err := c.ask(request{Op: opPut, Name: name}, fds)
	return err
}

// Get implements fdstore.Store.
func (c *Client) Get(name string) ([]int, error) {
	_, fds, err := c.ask(request{Op: opGet, Name: name}, nil)
	return fds, err
}

// Remove implements fdstore.Store.
func (c *Client) Remove(name string) error {
	_, _, err := c.ask(request{Op: opRemove, Name: name}, nil)
	return err
}

// Names implements fdstore.Store.
func (c *Client) Names() ([]string, error) {
	var all []string
	for behind := ""; ; behind = all[len(all)-1] {
		r, _, err := c.ask(request{Op: opNames, Name: behind}, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, r.Names...)
		if !r.More || len(r.Names) == 0 {
			return all, nil
		}
	}
}

// refusal is what the keeper answers instead of doing what it was asked.
type refusal struct {
	text  string
	errno syscall.Errno // zero: no system call failed
}

func (r *refusal) Error() string { return "keeper: " + r.text }

func (r *refusal) Unwrap() error {
	if r.errno == 0 {
		return nil
	}
	return r.errno
}

// Bind has the keeper open a socket that this process may not, "tcp", listening, or
// "udp", and returns it. errors.Is tells why it could not, as of bound.Open.
func (c *Client) Bind(network string, at netip.AddrPort) (fd int, err error) {
	return c.bind(network, at)
}

// BindTunnel has the keeper open a UDP socket with buffers as large as it was allowed.
func (c *Client) BindTunnel(at netip.AddrPort) (fd int, err error) { return c.bind(tunnelNetwork, at) }

// OpenResolvers has the keeper open the host's resolv.conf.
func (c *Client) OpenResolvers() (*os.File, error) {
	_, fds, err := c.ask(request{Op: opResolvers}, nil)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("keeper: %d files for one", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), resolversFile), nil
}

func (c *Client) bind(network string, at netip.AddrPort) (fd int, err error) {
	_, fds, err := c.ask(request{Op: opBind, Bind: &bind{network, at}}, nil)
	if err == nil && len(fds) != 1 {
		closeAll(fds)
		err = fmt.Errorf("keeper: %d sockets for one", len(fds))
	}
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// StartStore has the keeper run the embedded store, if it doesn't yet.
func (c *Client) StartStore() error {
	_, _, err := c.ask(request{Op: opStore}, nil)
	return err
}

// ask makes one exchange. The caller keeps its descriptors and owns those that
// come back; there are none with an error.
func (c *Client) ask(q request, fds []int) (response, []int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := write(c.conn, q, fds); err != nil {
		return response{}, nil, fmt.Errorf("keeper: %s %s: %w", q.Op, q.Name, err)
	}
	var r response
	got, err := read(c.conn, &r)
	switch {
	case err != nil:
		return response{}, nil, fmt.Errorf("keeper: %s %s: %w", q.Op, q.Name, err)
	case r.NotFound:
		closeAll(got)
		return response{}, nil, fmt.Errorf("keeper: %s %q: %w", q.Op, q.Name, fdstore.ErrNotFound)
	case r.Error != "":
		closeAll(got)
		return response{}, nil, &refusal{r.Error, syscall.Errno(r.Errno)}
	}
	return r, got, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
