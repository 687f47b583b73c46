//go:build linux

// Package vxlan joins switches over UDP with VXLAN (RFC 7348), as flannel and
// the Linux vxlan device speak it.
//
// It carries frames between members that it is told of; it never learns
// addresses, never floods, never fragments (RFC 7348 section 4.3) and does not
// encrypt. Inner MAC addresses are those of the two VTEPs. Super-frames are cut
// once, on the way into sendmmsg, and rebuilt on the way out of recvmmsg. What an
// inner address may be is the switch's to judge: a received frame names its
// member in Frame.Peer.
//
// Frames whose source is outside the cluster (Frame.Ingress) travel under a VNI of
// their own, so that the check of inner sources stays strict for all others.
//
// Queue i belongs to worker i. New, SetPeer, RemovePeer, Stats and Close may be
// called from any goroutine, Close only after the workers let go.
package vxlan

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"vswitch/internal/wire"
	"vswitch/tunnel/udp"
	"vswitch/vswitch/frame"
)

// Config says how to open a tunnel.
type Config struct {
	// Underlays are this node's addresses towards the others: one of IPv4, one of
	// IPv6, or both. Not wildcards: frames leave from them.
	Underlays []netip.Addr
	// Port is the first UDP port; 0: DefaultPort.
	Port uint16
	// Sockets is the number of queues, at most 64; 0: 1. Each has a port of its own,
	// Port, Port+1, ..., as far as they can be had.
	Sockets int
	// AllPorts: they must all be had, as where ports are yet to be chosen.
	AllPorts bool
	// VNI is this node's network identifier, 1 to 2^24-1; 0: DefaultVNI.
	VNI uint32
	// IngressVNI is a second identifier of this node's, for frames from outside the
	// cluster: 0, or 1 to 2^24-1 and not VNI. Only members that have one too send by it.
	IngressVNI uint32
	// MAC is this node's VTEP address, unicast.
	MAC frame.MAC
	// Offload allows UDP segmentation offload on send and receive where the kernel has it.
	Offload bool
	// USO and TSOECN say what every destination of received frames takes, beside
	// TSO4 and TSO6: merged datagrams (frame.GSOUDPL4), merged segments that begin with CWR.
	USO, TSOECN bool
	// NoCoalesce leaves received packets as they came, for destinations without TSO.
	NoCoalesce bool
	// UnderlayMTUBytes bounds outer IP packets; 0: the MTU of each underlay address's link.
	UnderlayMTUBytes int
	// PodMTUBytes is the MTU of this node's pods, which with more than one underlay
	// may be less than what each leaves; 0: what the smallest leaves.
	PodMTUBytes int
	// BufferBytes sizes each socket's buffers; 0: udp.DefaultBufferBytes.
	BufferBytes int
	// Keeper keeps the sockets beyond this process; nil: they end with it.
	Keeper Keeper
	// Bind opens a UDP socket, where this process may not, or not with buffers as large.
	// Nil: this process does.
	Bind func(local netip.AddrPort) (fd int, err error)
	// Log gets state changes; nil: slog.Default().
	Log *slog.Logger
}

// Keeper keeps descriptors under names. Put keeps duplicates, Get returns what the
// caller then owns.
type Keeper interface {
	Put(name string, fds []int) error
	Get(name string) ([]int, error)
}

const maxSockets = 64

func (c *Config) setDefaults() {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Sockets == 0 {
		c.Sockets = 1
	}
	if c.VNI == 0 {
		c.VNI = DefaultVNI
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func (c *Config) validate() error {
	var families [2]bool
	for _, a := range c.Underlays {
		v6 := 0
		if a.Unmap().Is6() {
			v6 = 1
		}
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
			return fmt.Errorf("underlay address %v: want a unicast address of this host, without zone", a)
		case families[v6]:
			return fmt.Errorf("underlay address %v: want at most one of each family", a)
		}
		families[v6] = true
	}
	switch {
	case len(c.Underlays) == 0:
		return errors.New("no underlay address: want one of IPv4, of IPv6, or both")
	case c.Sockets < 1 || c.Sockets > maxSockets:
		return fmt.Errorf("%d sockets: want 1 to %d", c.Sockets, maxSockets)
	case int(c.Port)+c.Sockets-1 > 65535:
		return fmt.Errorf("%d ports from %d: they end beyond 65535", c.Sockets, c.Port)
	case c.VNI > MaxVNI:
		return fmt.Errorf("VNI %d: want 1 to %d", c.VNI, MaxVNI)
	case c.IngressVNI > MaxVNI || c.IngressVNI == c.VNI:
		return fmt.Errorf("ingress VNI %d: want 1 to %d and not the VNI itself, or 0 for none", c.IngressVNI, MaxVNI)
	case c.MAC.IsZero() || c.MAC.IsMulticast():
		return fmt.Errorf("VTEP MAC %v: want a unicast address", c.MAC)
	case c.UnderlayMTUBytes < 0 || c.PodMTUBytes < 0:
		return fmt.Errorf("MTU of underlay %d, of pods %d: want 0 or more", c.UnderlayMTUBytes, c.PodMTUBytes)
	}
	return nil
}

// Tunnel is an open VXLAN end point.
type Tunnel struct {
	cfg     Config
	podMTU  int // bytes
	queues  []*Queue
	ports   []uint16
	links   []underlay
	members atomic.Pointer[members]
	paths   paths

	governor governor

	mu    sync.Mutex // serialises writers of members; guards paths, but for its atomic, and draft
	draft *members   // not published yet; nil: what is changed is published at once
}

// underlay is one address to send from.
type underlay struct {
	addr     netip.Addr
	v6       bool
	mtuBytes int // of outer IP packets
	gso      bool
}

// New opens the tunnel's sockets. The first port, or with AllPorts each, must be had
// on every underlay address: errors.Is(err, unix.EADDRINUSE) where another program has
// it. Further ones that are taken are left out: their queues share the other queues'
// sockets for sending, and receive nothing.
func New(cfg Config) (*Tunnel, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("vxlan: %w", err)
	}
	t := &Tunnel{cfg: cfg}
	t.members.Store(&members{
		byID: map[uint32]*member{}, bySource: map[udp.Addr]*member{}, byAddr: map[wire.Addr]*member{},
	})
	t.paths.known, t.paths.lifetime = map[wire.Addr]*path{}, pathLifetime
	underlays, err := t.underlays()
	if err != nil {
		return nil, err
	}
	t.links = underlays
	t.podMTU = cfg.PodMTUBytes
	if t.podMTU == 0 {
		t.podMTU = smallestPodMTU(underlays)
	}
	conns, err := t.listen(underlays)
	if err != nil {
		return nil, err
	}
	for i := range cfg.Sockets {
		q, err := t.newQueue(underlays, conns, i)
		if err != nil {
			closeAll(conns[min(i, len(conns)):])
			return nil, errors.Join(err, t.Close())
		}
		t.queues = append(t.queues, q)
	}
	if err := t.startGovernor(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// smallestPodMTU is the longest inner packet that every underlay carries.
func smallestPodMTU(us []underlay) int {
	mtu := math.MaxInt
	for _, u := range us {
		mtu = min(mtu, u.mtuBytes-Overhead(u.addr))
	}
	return mtu
}

func (t *Tunnel) underlays() ([]underlay, error) {
	var us []underlay
	for _, a := range t.cfg.Underlays {
		a = a.Unmap()
		u := underlay{addr: a, v6: a.Is6(), mtuBytes: t.cfg.UnderlayMTUBytes, gso: t.cfg.Offload}
		if u.mtuBytes == 0 {
			mtu, err := LinkMTU(a)
			if err != nil {
				return nil, err
			}
			u.mtuBytes = mtu
		}
		if u.gso {
			if err := udp.VerifyGSO(a); errors.Is(err, udp.ErrBadGSO) {
				t.cfg.Log.Warn("vxlan: packets are sent alone", "addr", a, "err", err)
				u.gso = false
			} else if err != nil {
				return nil, fmt.Errorf("vxlan: underlay %v: %w", a, err)
			}
		}
		us = append(us, u)
	}
	return us, nil
}

// listen opens sockets: the result has one element for each port had, and in it
// one Conn for each underlay.
func (t *Tunnel) listen(us []underlay) ([][]*udp.Conn, error) {
	var conns [][]*udp.Conn
	for i := range t.cfg.Sockets {
		port := t.cfg.Port + uint16(i)
		set, err := t.listenPort(us, port)
		if err != nil && (i == 0 || t.cfg.AllPorts) {
			closeAll(conns)
			return nil, fmt.Errorf("vxlan: port %d is needed: %w", port, err)
		}
		if err != nil {
			t.cfg.Log.Warn("vxlan: port left out", "port", port, "err", err)
			continue
		}
		conns = append(conns, set)
		t.ports = append(t.ports, port)
	}
	if err := t.keep(conns); err != nil {
		closeAll(conns)
		return nil, err
	}
	return conns, nil
}

// keep has every socket outlive this process, once all are had.
func (t *Tunnel) keep(conns [][]*udp.Conn) error {
	if t.cfg.Keeper == nil {
		return nil
	}
	for _, set := range conns {
		for _, c := range set {
			if err := t.cfg.Keeper.Put(keptName(c.Local()), []int{c.FD()}); err != nil {
				return fmt.Errorf("vxlan: keep %v: %w", c.Local(), err)
			}
		}
	}
	return nil
}

const keptPrefix = "tunnel/"

func keptName(local netip.AddrPort) string {
	return fmt.Sprintf("%s%s/%d", keptPrefix, strings.ReplaceAll(local.Addr().String(), ":", "-"), local.Port())
}

// KeptAt tells of which underlay address a socket is that some tunnel gave its Keeper;
// false: the name is none of a tunnel's.
func KeptAt(name string) (netip.Addr, bool) {
	rest, ok := strings.CutPrefix(name, keptPrefix)
	text, _, slash := strings.Cut(rest, "/")
	a, err := netip.ParseAddr(strings.ReplaceAll(text, "-", ":"))
	return a, ok && slash && err == nil
}

func (t *Tunnel) listenPort(us []underlay, port uint16) ([]*udp.Conn, error) {
	var set []*udp.Conn
	for _, u := range us {
		c, err := t.listenOn(netip.AddrPortFrom(u.addr, port))
		if err != nil {
			closeAll([][]*udp.Conn{set})
			return nil, err
		}
		if !u.gso {
			c.DisableGSO()
		}
		set = append(set, c)
	}
	return set, nil
}

// listenOn opens a socket, or takes the one that was kept from before: what came in
// meanwhile is still in it.
func (t *Tunnel) listenOn(local netip.AddrPort) (*udp.Conn, error) {
	cfg := udp.Config{
		Local: local, BufferBytes: t.cfg.BufferBytes, Offload: t.cfg.Offload, PathMTU: t.learn, Log: t.cfg.Log,
	}
	if t.cfg.Keeper != nil {
		if fds, err := t.cfg.Keeper.Get(keptName(local)); err == nil {
			cfg.Socket = fds[0]
		}
	}
	if cfg.Socket == 0 && t.cfg.Bind != nil {
		fd, err := t.cfg.Bind(local)
		if err != nil {
			return nil, err
		}
		cfg.Socket = fd
	}
	return udp.Listen(cfg)
}

func closeAll(sets [][]*udp.Conn) {
	for _, set := range sets {
		for _, c := range set {
			c.Close()
		}
	}
}

// Ports are the UDP ports that were had, for other nodes to send to. The first is Config.Port.
func (t *Tunnel) Ports() []uint16 { return append([]uint16(nil), t.ports...) }

// Queue is worker i's, 0 <= i < Config.Sockets.
func (t *Tunnel) Queue(i int) *Queue { return t.queues[i] }

func (t *Tunnel) hasFamily(a netip.Addr) bool {
	for _, u := range t.cfg.Underlays {
		if u.Unmap().Is6() == a.Is6() {
			return true
		}
	}
	return false
}

// Stats sums the sockets' counts.
func (t *Tunnel) Stats() udp.Stats {
	var sum udp.Stats
	for _, q := range t.queues {
		for _, l := range q.links {
			s := l.conn.Stats()
			sum.GSORefused += s.GSORefused
			sum.SendFull += s.SendFull
			sum.ReceiveErrors += s.ReceiveErrors
			sum.TooBig += s.TooBig
			sum.ReceiveOverflow += s.ReceiveOverflow
		}
	}
	return sum
}

// Close closes every queue; a second call does nothing.
func (t *Tunnel) Close() error {
	t.closePaths()
	errs := []error{t.governor.close()}
	for _, q := range t.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}
