//go:build linux

// Package udp is a UDP socket that moves many datagrams per system call:
// recvmmsg with UDP_GRO on receive, sendmmsg with UDP_SEGMENT and gathered
// buffers on send.
//
// A Conn belongs to one worker, which alone calls its methods (Stats and Close
// excepted). Calls never block and, once the socket is open, never allocate.
// The package knows nothing of what the datagrams carry, of members or routes.
//
// Words. A *datagram* is what the wire carries. A *message* is what one element
// of recvmmsg or sendmmsg carries: one datagram, or a *train* of several with the
// same addresses and TOS, all of one size but for a shorter last one.
package udp

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
)

const (
	// MaxDatagramBytes is the largest payload of a datagram, and of a train handed
	// over in one message: 65,535 less the IPv4 (20) and UDP (8) headers. IPv6
	// would take 20 bytes more; one bound for both is simpler.
	MaxDatagramBytes = 65535 - wire.IPv4Bytes - wire.UDPBytes
	// MaxTrain is how many datagrams one message may carry: UDP_MAX_SEGMENTS of
	// kernels before 6.9 (128 since).
	MaxTrain = 64

	// DefaultBufferBytes is asked of the kernel for each direction. The receive
	// buffer is the only cushion while a worker is busy or restarts: 8 MiB hold
	// 5 ms at 10 Gb/s, counting the kernel's overhead per packet. An unprivileged
	// process gets no more than net.core.rmem_max.
	DefaultBufferBytes = 8 << 20
)

// Addr is an address and port without pointers, usable as a map key.
type Addr struct {
	IP   wire.Addr
	Port uint16
}

// AddrFrom converts from netip; the zone is lost.
func AddrFrom(ap netip.AddrPort) Addr { return Addr{wire.AddrFrom(ap.Addr()), ap.Port()} }

func (a Addr) String() string { return netip.AddrPortFrom(a.IP.Netip(), a.Port).String() }

// Config says how to open a Conn.
type Config struct {
	// Local is the address to send from and receive at; port 0 takes a free one. No wildcard.
	Local netip.AddrPort
	// Socket is one that is bound to Local already, kept from before or opened by another
	// process; 0: a new one is opened. Listen takes it over, also when it fails.
	Socket int
	// BufferBytes is the size of the socket's buffers; 0: DefaultBufferBytes.
	BufferBytes int
	// Offload allows trains in both directions where the kernel has them.
	Offload bool
	// PathMTU is told, on a worker's thread and rarely, what the way to an address
	// carries, in bytes of IP packet, when the network or a device refused more. An
	// ICMP error may be forged: it is for the callee to bound what it believes. Nil: nobody asks.
	PathMTU func(to Addr, mtuBytes int)
	// Log gets state changes; nil: slog.Default().
	Log *slog.Logger
}

func (c *Config) validate() error {
	switch ip := c.Local.Addr(); {
	case !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast():
		return fmt.Errorf("udp: local address %v: want a unicast address of this host", ip)
	case ip.Zone() != "":
		return fmt.Errorf("udp: local address %v: link-local addresses are not supported", ip)
	case c.BufferBytes < 0:
		return fmt.Errorf("udp: buffer of %d bytes: want 0 or more", c.BufferBytes)
	}
	return nil
}

// Conn is an open socket. See the package comment for who may call what.
type Conn struct {
	fd    int
	local netip.AddrPort
	v6    bool
	gso   bool // trains may be sent
	gro   bool // trains may arrive
	log   *slog.Logger

	rx   *receiver // nil: send only
	tx   sender
	errs errorQueue

	counters counters

	mu     sync.Mutex // guards closed, and fd against reuse in Stats
	closed bool
}

type counters struct {
	gsoRefused, sendFull, receiveErrors, tooBig atomic.Uint64
}

// Stats are counts since the socket was opened.
type Stats struct {
	GSORefused      uint64 // destinations to which the kernel refused a train
	SendFull        uint64 // sends that met a full socket buffer
	ReceiveErrors   uint64 // transient errors of recvmmsg
	TooBig          uint64 // reports that a datagram did not fit its path
	ReceiveOverflow uint64 // datagrams the kernel dropped for want of receive buffer, or with a bad checksum
}

// Listen opens a socket. Errors name the address; errors.Is(err, unix.EADDRINUSE)
// tells a port that is taken.
func Listen(cfg Config) (*Conn, error) {
	if err := cfg.validate(); err != nil {
		if cfg.Socket != 0 {
			unix.Close(cfg.Socket)
		}
		return nil, err
	}
	c := &Conn{fd: -1, log: cfg.Log, rx: newReceiver()}
	c.errs.pathMTU = cfg.PathMTU
	if c.log == nil {
		c.log = slog.Default()
	}
	if err := c.open(&cfg); err != nil {
		if c.fd >= 0 {
			unix.Close(c.fd)
		}
		return nil, fmt.Errorf("udp: listen %v: %w", cfg.Local, err)
	}
	return c, nil
}

func (c *Conn) open(cfg *Config) error {
	ip := cfg.Local.Addr().Unmap()
	c.v6 = ip.Is6()
	if c.fd = cfg.Socket; c.fd == 0 {
		fd, err := unix.Socket(family(ip), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
		if err != nil {
			c.fd = -1
			return os.NewSyscallError("socket", err)
		}
		c.fd = fd
	}
	if err := c.setOptions(cfg); err != nil {
		return err
	}
	if cfg.Socket == 0 {
		if err := unix.Bind(c.fd, sockaddr(ip, cfg.Local.Port())); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	c.local = addrPort(sa)
	if port := cfg.Local.Port(); c.local.Addr() != ip || port != 0 && c.local.Port() != port {
		return fmt.Errorf("the socket kept is bound to %v", c.local)
	}
	return nil
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func sockaddr(ip netip.Addr, port uint16) unix.Sockaddr {
	if ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: ip.As16(), Port: int(port)}
}

// udpNoCheck6Rx is UDP_NO_CHECK6_RX (include/uapi/linux/udp.h).
const udpNoCheck6Rx = 102

func (c *Conn) setOptions(cfg *Config) error {
	// PMTUDISC_PROBE sets DF and ignores the kernel's cached path MTU, which anyone
	// who can forge an ICMP error can lower; the caller bounds what it sends.
	required := [][3]int{
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
		{unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{unix.IPPROTO_IP, unix.IP_RECVERR, 1},
	}
	if c.v6 {
		required = [][3]int{
			{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1},
		}
		// Tunnels may send zero checksums over IPv6 (RFC 6935): accept them, as over
		// IPv4. Ours always have one. Without the option (Linux 3.16) they are dropped.
		_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, udpNoCheck6Rx, 1)
	}
	if c.v6 && cfg.Socket == 0 { // one that is bound already says EINVAL
		required = append(required, [3]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	for _, o := range required {
		if err := unix.SetsockoptInt(c.fd, o[0], o[1], o[2]); err != nil {
			return os.NewSyscallError(fmt.Sprintf("setsockopt level %d option %d", o[0], o[1]), err)
		}
	}
	c.sizeBuffers(cfg)
	if cfg.Offload {
		// Both are absent before Linux 4.18 (send) and 5.0 (receive); every datagram then goes alone.
		c.gso = unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) == nil
		c.gro = unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		if !c.gso || !c.gro {
			c.log.Warn("udp: kernel lacks segmentation offload, every packet is sent alone",
				"addr", cfg.Local, "send", c.gso, "receive", c.gro, "minimum", "Linux 5.0")
		}
	} else if cfg.Socket != 0 {
		_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0) // what it had before
	}
	return nil
}

// sizeBuffers asks for cfg.BufferBytes each way, past the system's limit where the
// process may (CAP_NET_ADMIN), up to it otherwise. A small buffer is no error: it costs
// packets only under load. A socket that is given may have had more than this process
// may ask for: it keeps that.
func (c *Conn) sizeBuffers(cfg *Config) {
	n := cmp.Or(cfg.BufferBytes, DefaultBufferBytes)
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o[0], n) != nil && cfg.Socket == 0 {
			_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o[1], n)
		}
	}
}

// Sender opens a second, send-only handle on the same socket, for a worker that
// has none of its own: same local port, own staging arrays, own Close. log gets its
// state changes; nil: the Conn's own log.
func (c *Conn) Sender(log *slog.Logger) (*Conn, error) {
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("udp: share %v: %w", c.local, os.NewSyscallError("fcntl", err))
	}
	s := &Conn{fd: fd, local: c.local, v6: c.v6, gso: c.gso, log: cmp.Or(log, c.log)}
	s.errs.pathMTU = c.errs.pathMTU
	return s, nil
}

// FD is the socket, for epoll. It stays the Conn's.
func (c *Conn) FD() int { return c.fd }

// Local is the address and port the socket is bound to.
func (c *Conn) Local() netip.AddrPort { return c.local }

// DisableGSO makes every datagram a message of its own, as where the kernel is
// known to cut trains wrongly.
func (c *Conn) DisableGSO() { c.gso = false }

// SendsTrains reports whether trains are sent at all.
func (c *Conn) SendsTrains() bool { return c.gso }

// Stats may be called from any goroutine, also after Close.
func (c *Conn) Stats() Stats {
	s := Stats{
		GSORefused:    c.counters.gsoRefused.Load(),
		SendFull:      c.counters.sendFull.Load(),
		ReceiveErrors: c.counters.receiveErrors.Load(),
		TooBig:        c.counters.tooBig.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.rx != nil {
		s.ReceiveOverflow = socketDrops(c.fd)
	}
	return s
}

// socketDrops reads SK_MEMINFO_DROPS, the ninth word of SO_MEMINFO (Linux 4.12); 0 without.
func socketDrops(fd int) uint64 {
	var words [16]uint32
	size := uint32(unsafe.Sizeof(words))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&words)), uintptr(unsafe.Pointer(&size)), 0)
	const drops = 8
	if errno != 0 || size < 4*(drops+1) {
		return 0
	}
	return uint64(words[drops])
}

// ErrClosed is returned by Receive after Close.
var ErrClosed = errors.New("udp: closed")

// Close closes the handle; a second call does nothing. The owner must have let go.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return os.NewSyscallError("close", unix.Close(c.fd))
}
