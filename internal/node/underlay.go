package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/config"
	"vswitch/internal/upkeep"
	"vswitch/tunnel/vxlan"
)

// underlayObject is the address at which other nodes reach this one. Where it was not
// given and another has come in its place, another process takes this one's: what
// is bound to an address, connections to the store among it, is made anew, and what
// pods have stays (docs/adr/0021-underlay-changes.md). An address that was given is
// waited for.
//
// It counts as gone when it was missed twice: a DHCP client may take it away and put
// it back.
func (n *node) underlayObject() upkeep.Object {
	missed := false
	o := upkeep.Object{Name: "underlay address", Check: func() error {
		err := n.checkUnderlay()
		if err == nil || n.ctx.Err() != nil {
			missed = false
			return nil
		}
		if !missed {
			missed = true
			return nil
		}
		return err
	}}
	if n.cfg.UnderlayNote != "" {
		o.Mend = n.moveUnderlay
	}
	return o
}

func (n *node) checkUnderlay() error {
	for _, a := range n.cfg.Underlay {
		if !isLocal(a) {
			return fmt.Errorf("%v, at which other nodes reach this one, is no address of this host", a)
		}
	}
	return nil
}

// isLocal reports whether an address can be sent from. What else a socket may fail
// for, too few descriptors for one, is no word about the address.
func isLocal(a netip.Addr) bool {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err == nil {
		conn.Close()
	}
	return !errors.Is(err, unix.EADDRNOTAVAIL)
}

// moveTimeout is how long another process may take to be about to begin.
const moveTimeout = 10 * time.Second

// moveUnderlay has another process begin at the address that is there now, and waits
// until it does. The address is of the same family: other nodes may have no other.
func (n *node) moveUnderlay() error {
	old := n.cfg.Underlay[0]
	next, ok := config.DefaultUnderlay(old.Is6())
	if !ok || next == old {
		return fmt.Errorf("%v is no address of this host, and no other of its family has a default route", old)
	}
	if n.opt.Keeper == nil {
		n.cancel(fmt.Errorf("the underlay address %v has become %v; start the daemon again", old, next))
		return nil
	}
	n.log.Warn("the underlay address has changed; another process takes over at the new one", "addr", old, "next", next)
	if err := n.opt.Keeper.Renew(); err != nil {
		return err
	}
	select {
	case <-n.ctx.Done():
		return nil
	case <-time.After(moveTimeout):
		return fmt.Errorf("no process has taken over at %v", next)
	}
}

// forgetTunnels has the keeper close the tunnel's sockets at addresses that the node
// has no more.
func (n *node) forgetTunnels() error {
	names, err := n.fds.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if at, ok := vxlan.KeptAt(name); ok && !slices.Contains(n.cfg.Underlay, at) {
			if err := n.fds.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}
