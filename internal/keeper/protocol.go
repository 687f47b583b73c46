package keeper

import (
	"encoding/json"
	"fmt"
	"net"
	"time"

	"vswitch/internal/fdpass"
)

// The protocol: one packet asks, one answers, in turn, over the SOCK_SEQPACKET pair
// that the child was born with. Descriptors travel beside the packet (SCM_RIGHTS).
// It may only grow: the keeper of one version runs children of another.

// ConnFD is the descriptor at which a child finds its connection.
const ConnFD = 3

// versionEnv says in a child's environment that there is a keeper, and which
// version of the protocol it speaks.
const (
	versionEnv = "VSWITCH_KEEPER"
	version    = "2" // from 1: the keeper runs the embedded store
	// startsEnv is how many children there were before.
	startsEnv = "VSWITCH_KEEPER_STARTS"
)

type op string

const (
	opBegin     op = "begin"     // answered when the child before is gone
	opReady     op = "ready"     // the child forwards
	opPut       op = "put"       // fdstore.Store's calls
	opGet       op = "get"       //
	opRemove    op = "remove"    //
	opNames     op = "names"     // in pages: those behind Name
	opRenew     op = "renew"     // a planned restart
	opRefuse    op = "refuse"    // the child ends instead, for Reason
	opRefused   op = "refused"   // why the last planned restart came to nothing
	opBind      op = "bind"      // a socket at an address that needs privilege
	opStore     op = "store"     // the embedded store is to run
	opResolvers op = "resolvers" // resolversFile, open
)

type request struct {
	Op   op     `json:"op"`
	Name string `json:"name,omitempty"`
	Bind *bind  `json:"bind,omitempty"`
	// Reason is of maxReasonBytes at most.
	Reason string `json:"reason,omitempty"`
	// Version is of takeover.go's part of the protocol, with its hello.
	Version string `json:"version,omitempty"`
}

type response struct {
	Error    string   `json:"error,omitempty"`
	Errno    int      `json:"errno,omitempty"` // the system call's, if one failed
	NotFound bool     `json:"notFound,omitempty"`
	Names    []string `json:"names,omitempty"`
	More     bool     `json:"more,omitempty"`   // there are names behind these
	Reason   string   `json:"reason,omitempty"` // to opRefused
	// Drain, of takeover.go's hello, is how much longer the child that is to end may take.
	Drain time.Duration `json:"drain,omitempty"`
}

// maxReasonBytes keeps a packet below fdpass.MaxMessageBytes, JSON's escapes included.
const maxReasonBytes = fdpass.MaxMessageBytes / 8

// namesPerPage names of fdstore.MaxNameBytes fit a packet.
const namesPerPage = 14

func write(conn *net.UnixConn, message any, fds []int) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return fdpass.WritePacket(conn, text, fds)
}

func read(conn *net.UnixConn, message any) (fds []int, err error) {
	text, fds, err := fdpass.ReadPacket(conn)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, message); err != nil {
		closeAll(fds)
		return nil, &fdpass.PacketError{Cause: fmt.Errorf("read message: %w", err)}
	}
	return fds, nil
}
