package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"vswitch/vswitch/affinity"
	"vswitch/vswitch/frame"
)

// Defaults, chosen by us. They bound what one pod or one flood can take from the
// node; none is a limit of a standard.
const (
	defaultConnectionsPerPod  = 4096             // two goroutines each, and buffers by their allowance
	defaultHalfOpenPerPod     = 256              // dials under way: what a scan or a SYN flood can hold
	defaultSessionsPerPod     = 4096             // UDP and echo
	defaultIngressConnections = 16384            // over all services
	defaultHostSockets        = 1024             // shared by all UDP and echo sessions; a goroutine each
	defaultRingPackets        = 1024             // a queue's: 64 MiB at most, of super-frames
	defaultDialTimeout        = 10 * time.Second // Linux retries a SYN at 1, 3 and 7 s
	defaultTCPIdle            = 24 * time.Hour   // as kube-proxy sets nf_conntrack_tcp_timeout_established
	defaultTCPHalfClosedIdle  = time.Hour        // as kube-proxy sets nf_conntrack_tcp_timeout_close_wait
	defaultUDPIdle            = 30 * time.Second // nf_conntrack_udp_timeout
	defaultUDPStreamIdle      = 3 * time.Minute  // nf_conntrack_udp_timeout_stream was 180 s
	defaultNodePortRetry      = 10 * time.Second // a node port that something else holds is tried again
)

// Config is what a gateway is built from. Zero means the default where one is named.
type Config struct {
	// Queues is the number of switch workers, 1 to 64.
	Queues int
	// MTUBytes bounds the IP packets sent to pods: 1,280 to 65,535.
	MTUBytes int
	// MAC is the source of every frame the gateway sends (vswitch.GatewayMAC).
	MAC frame.MAC
	// Routers are the node's router addresses, one a family at most: the source of
	// ICMP errors and of connections to pods whose client's address can't be kept.
	// A family without one gets neither.
	Routers []netip.Addr

	// Cluster and Service are the ranges of pods and VIPs. Neither is reached
	// through the host, and no client with such an address is from outside.
	Cluster, Service []netip.Prefix
	// Denied are further ranges that pods don't reach through the host, besides
	// those that deniedAlways names.
	Denied []netip.Prefix
	// Allowed are link-local ranges that pods reach all the same, such as a cloud's
	// metadata service.
	Allowed []netip.Prefix
	// DeniedTCP are places that pods don't connect to, as the store of the cluster
	// is: each address and port, and the same ports at every node's addresses.
	DeniedTCP []netip.AddrPort
	// IsLocalPod reports whether a is a pod of this node: such an endpoint sees
	// the client's own address. Nil: none is.
	IsLocalPod func(a netip.Addr) bool
	// TakesIngress reports whether a is a pod of a node that takes clients' own
	// addresses from this one: such an endpoint sees them, too. Nil: none is.
	TakesIngress func(a netip.Addr) bool
	// IsNode reports whether a belongs to a node of the cluster. Nil: only this
	// host's own addresses do.
	IsNode func(a netip.Addr) bool
	// Unreachable reports whether the switch has no way to a, as to a pod that is gone: then
	// no new flow is given to it while another endpoint is there. Nil: it has one to all.
	Unreachable func(a netip.Addr) bool
	// LeadsOut reports whether the switch has no other way to a than by the gateway to
	// the outside, as it has to outside addresses of services. Nil: to all but this
	// host's own addresses.
	LeadsOut func(a netip.Addr) bool
	// Outside replaces the rule for clients whose address is kept. Nil: global
	// unicast addresses outside Cluster, Service and nodes for which LeadsOut is true.
	Outside func(a netip.Addr) bool
	// HostLoopback are addresses, one a family at most, at which pods reach the
	// host's own loopback, as slirp4netns and pasta offer it. Empty: they don't.
	HostLoopback []netip.Addr

	// DNS answers pods' questions at DNSAddrs, VIPs, port 53, unless a service has
	// that address and port. Nil: nothing does.
	DNS      DNS
	DNSAddrs []netip.Addr

	// HostAddrs lists the addresses of the host. Nil: those of its interfaces.
	HostAddrs func() ([]netip.Addr, error)
	// NodePortAddrs are the host addresses on which node ports, and pods' host ports
	// that name none, are open. Nil: every global address of the host's interfaces, as
	// they come and go.
	NodePortAddrs []netip.Addr
	// NodePortLoopback adds 127.0.0.1 and ::1 for node ports.
	NodePortLoopback bool
	// NoNodePorts keeps every host port closed.
	NoNodePorts bool
	// Keeper keeps listening sockets beyond this process. Nil: they end with it.
	Keeper Keeper
	// Bind opens a socket ("tcp", listening, or "udp") at an address where this process
	// may not: ports below 1024, for one without privilege. Nil: nobody does.
	Bind func(network string, at netip.AddrPort) (fd int, err error)
	// LowPortOffset is added to a port that may not be opened, even by Bind, and the sum
	// is opened in its stead. 0: it stays closed.
	LowPortOffset uint16
	// NodePortRetry is how often a failed bind is tried again: default 10 s.
	NodePortRetry time.Duration

	// Affinity remembers the clients of services with affinity. It is the caller's, who closes it
	// once nothing calls Pick any more. Nil: such services are refused.
	Affinity *affinity.Memory

	// EndpointGone is told when a service stops sending to an endpoint, so that
	// the owner of the flow table can delete flows. PutService and DeleteService
	// call it, and it must call neither. Nil: nobody asks.
	EndpointGone func(Gone)

	// Caps; zero means the default.
	ConnectionsPerPod  int // TCP through the host, 4,096
	HalfOpenPerPod     int // of those, not yet connected: 256
	SessionsPerPod     int // UDP and echo through the host, 4,096
	IngressConnections int // TCP and UDP from outside, all services: 16,384
	HostSockets        int // UDP and ping sockets opened for pods, 1,024
	RingPackets        int // packets waiting for one switch worker, 1,024
	// MemoryBytes is what all TCP connections together may hold in buffers: default
	// an eighth of the machine's memory, 64 MiB to 2 GiB.
	MemoryBytes int64

	// Time limits; zero means the default.
	DialTimeout       time.Duration // 10 s
	TCPIdle           time.Duration // 24 h
	TCPHalfClosedIdle time.Duration // 1 h
	UDPIdle           time.Duration // 30 s: seen one way only, or one exchange
	UDPStreamIdle     time.Duration // 180 s: seen both ways repeatedly

	// Log gets state changes, never packets. Nil: slog.Default().
	Log *slog.Logger
}

// orDefault gives a zero value its default.
func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// complete fills in defaults and refuses what can't work.
func (c *Config) complete() error {
	orDefault(&c.ConnectionsPerPod, defaultConnectionsPerPod)
	orDefault(&c.HalfOpenPerPod, defaultHalfOpenPerPod)
	orDefault(&c.SessionsPerPod, defaultSessionsPerPod)
	orDefault(&c.IngressConnections, defaultIngressConnections)
	orDefault(&c.HostSockets, defaultHostSockets)
	orDefault(&c.RingPackets, defaultRingPackets)
	orDefault(&c.MemoryBytes, defaultMemoryBytes())
	orDefault(&c.DialTimeout, defaultDialTimeout)
	orDefault(&c.TCPIdle, defaultTCPIdle)
	orDefault(&c.TCPHalfClosedIdle, defaultTCPHalfClosedIdle)
	orDefault(&c.UDPIdle, defaultUDPIdle)
	orDefault(&c.UDPStreamIdle, defaultUDPStreamIdle)
	orDefault(&c.NodePortRetry, defaultNodePortRetry)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.IsLocalPod == nil {
		c.IsLocalPod = func(netip.Addr) bool { return false }
	}
	if c.HostAddrs == nil {
		c.HostAddrs = interfaceAddrs
	}
	if c.TakesIngress == nil {
		c.TakesIngress = func(netip.Addr) bool { return false }
	}
	switch {
	case c.Queues < 1 || c.Queues > 64:
		return fmt.Errorf("%d queues, want 1 to 64", c.Queues)
	case c.MTUBytes < 1280 || c.MTUBytes > 65535:
		return fmt.Errorf("MTU %d, want 1280 to 65535", c.MTUBytes)
	case c.MAC.IsZero() || c.MAC.IsMulticast():
		return fmt.Errorf("MAC %v, want a unicast address", c.MAC)
	case c.ConnectionsPerPod < 0 || c.HalfOpenPerPod < 0 || c.SessionsPerPod < 0 ||
		c.IngressConnections < 0 || c.HostSockets < 0 || c.RingPackets < 0 || c.MemoryBytes < 0:
		return errors.New("a cap is negative")
	case c.DialTimeout < 0 || c.TCPIdle < 0 || c.TCPHalfClosedIdle < 0 || c.UDPIdle < 0 ||
		c.UDPStreamIdle < 0 || c.NodePortRetry < 0:
		return errors.New("a time limit is negative")
	}
	for _, a := range c.DNSAddrs {
		if !a.IsValid() || a.Is4In6() || !a.IsGlobalUnicast() {
			return fmt.Errorf("DNSAddrs %v, want service addresses", c.DNSAddrs)
		}
	}
	if _, _, err := onePerFamily("Routers", c.Routers); err != nil {
		return err
	}
	_, _, err := onePerFamily("HostLoopback", c.HostLoopback)
	return err
}

// onePerFamily splits a list with at most one address of each family.
func onePerFamily(name string, as []netip.Addr) (v4, v6 netip.Addr, err error) {
	for _, a := range as {
		family := &v4
		if a.Is6() {
			family = &v6
		}
		if !a.IsValid() || a.Is4In6() || family.IsValid() {
			return v4, v6, fmt.Errorf("%s %v, want at most one address of each family", name, as)
		}
		*family = a
	}
	return v4, v6, nil
}
