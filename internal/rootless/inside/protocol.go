package inside

import (
	"encoding/json"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdpass"
	"vswitch/internal/rootless/plan"
	"vswitch/tap"
)

// What who starts the namespace and what runs in it say to each other, over a
// SOCK_SEQPACKET pair that the latter is born with:
//
//	outside                          inside
//	mapped: ids are ----------------->
//	plan ---------------------------->  makes the interface
//	      <---------------------------  made, with descriptors beside it
//	begin: the network works -------->  becomes the command
//	      <---------------------------  the end: it has; or an error

// ConnFD is the descriptor at which the process inside finds the connection.
const ConnFD = 3

// Message is one packet.
type Message struct {
	Plan *plan.Plan `json:"plan,omitempty"`
	// Setup says what more than the interface is wanted.
	Setup *Setup `json:"setup,omitempty"`

	Made     bool         `json:"made,omitempty"`
	Features tap.Features `json:"features,omitempty"` // of the TAP made
	Error    string       `json:"error,omitempty"`
	Code     int          `json:"code,omitempty"` // to exit with, where there is an error
}

// Setup is what the process inside does besides making the interface.
type Setup struct {
	// ResolvConf is what stands in /etc/resolv.conf; empty: what stands there anyway.
	ResolvConf string `json:"resolvConf,omitempty"`
	// Engine gives the command what container engines want: the kernel's file systems
	// as they are in these namespaces, directories to write, and an init, as which this
	// process stays. It is the first of a PID namespace then.
	Engine bool `json:"engine,omitempty"`
	// Cgroup says that the cgroup which this process is in is the namespace's own.
	Cgroup bool `json:"cgroup,omitempty"`
	// CopyUp are more directories to make writable, and Binds what is shown elsewhere.
	CopyUp []string `json:"copyUp,omitempty"`
	Binds  []Bind   `json:"binds,omitempty"`
	// Bare leaves the interface without IPv4 addresses and routes, which others give it.
	Bare bool `json:"bare,omitempty"`
}

// Error is what went wrong inside.
type Error struct {
	Text string
	Code int // to exit with
}

func (e *Error) Error() string { return e.Text }

// Conn is one end.
type Conn struct{ conn *net.UnixConn }

// NewConn takes over the connection that this process was born with.
func NewConn() (*Conn, error) {
	conn, err := fdpass.ConnOf(ConnFD)
	if err != nil {
		return nil, err
	}
	return &Conn{conn}, nil
}

// NewPair makes a connection to a process inside, and what that is to be born with.
func NewPair() (*Conn, *os.File, error) {
	conn, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, nil, err
	}
	return &Conn{conn}, theirs, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Send sends a message with duplicates of fds beside it.
func (c *Conn) Send(m Message, fds ...int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return fdpass.WritePacket(c.conn, text, fds)
}

// Receive waits for a message; the descriptors beside it are the caller's. With an
// error there are none.
func (c *Conn) Receive() (Message, []int, error) {
	var m Message
	text, fds, err := fdpass.ReadPacket(c.conn)
	if err != nil {
		return m, nil, err
	}
	if err = json.Unmarshal(text, &m); err != nil {
		err = fmt.Errorf("read message: %w", err)
	} else if m.Error != "" {
		err = &Error{m.Error, m.Code}
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return m, nil, err
	}
	return m, fds, nil
}
