package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Listening sockets can outlive the process: a client that comes while nobody
// accepts waits in the kernel for whoever does next.

// Keeper keeps sockets under names. Put keeps duplicates; what Get returns is the
// caller's.
type Keeper interface {
	Put(name string, fds []int) error
	Get(name string) ([]int, error)
	Remove(name string) error
	Names() ([]string, error)
}

// keptPrefix begins the names of listening sockets.
const keptPrefix = "listen/"

func keptName(network string, at netip.AddrPort) string {
	// Colons can't be in a name.
	return fmt.Sprintf("%s%s/%s/%d", keptPrefix, network, strings.ReplaceAll(at.Addr().String(), ":", "-"), at.Port())
}

// socket gives the socket of an entrance: the one kept, or a new one, opened by
// whoever may if this process may not.
func (l *listeners) socket(network string, at netip.AddrPort) (fd int, err error) {
	name, keeper := keptName(network, at), l.g.cfg.Keeper
	if keeper != nil {
		if fds, err := keeper.Get(name); err == nil && len(fds) > 0 {
			return fds[0], nil
		}
	}
	fd, err = l.open(network, at)
	if errors.Is(err, unix.EACCES) && l.g.cfg.Bind != nil {
		fd, err = l.g.cfg.Bind(network, at)
	}
	if err != nil || keeper == nil {
		return fd, err
	}
	if err := keeper.Put(name, []int{fd}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// giveUp has a socket kept no longer.
func (l *listeners) giveUp(network string, at netip.AddrPort) {
	if l.g.cfg.Keeper == nil {
		return
	}
	if err := l.g.cfg.Keeper.Remove(keptName(network, at)); err != nil {
		l.g.cfg.Log.Warn("a closed host port stays with the keeper", "addr", at.String(), "protocol", network, "err", err)
	}
}

// giveUpRest has the sockets kept no longer that an earlier process had open and this
// one does not want. Callers hold mu.
func (l *listeners) giveUpRest() {
	keeper := l.g.cfg.Keeper
	if keeper == nil {
		return
	}
	names, err := keeper.Names()
	if err != nil {
		l.g.cfg.Log.Warn("what the keeper has is not known", "err", err)
		return
	}
	var open []string
	for k, sl := range l.slots {
		for a, o := range sl.open {
			open = append(open, keptName(protocolName(k.proto), netip.AddrPortFrom(a, o.port)))
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, keptPrefix) && !slices.Contains(open, name) {
			if err := keeper.Remove(name); err != nil {
				l.g.cfg.Log.Warn("a host port of before stays with the keeper", "name", name, "err", err)
			}
		}
	}
}
