// Package config holds what `vswitch run` can be told: one typed Config, read
// from flags, the environment and a YAML file, and one validate.
//
// It opens nothing but that file. Strings become addresses, prefixes and sizes
// here, so that no other package parses them again.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"vswitch/control/api"
	"vswitch/internal/confine"
	"vswitch/internal/dns"
)

// Config is a node's configuration, complete and checked once Load returned it.
type Config struct {
	Node     string       // unique in the cluster; a DNS-1123 subdomain
	Underlay []netip.Addr // where other nodes reach this one: one address a family at most
	UDPPort  uint16       // of the tunnel; further sockets take the ports behind it; zero: those the node chooses

	Store Store

	ClusterCIDR  []netip.Prefix // pods of all nodes: one prefix a family at most
	ServiceCIDR  []netip.Prefix // ClusterIPs: likewise
	LBCIDR       []netip.Prefix // of LoadBalancers: likewise; none: those of the nodes
	ExternalIPs  bool           // services' spec.externalIPs are served
	DNS          DNS
	AllowEgress  []netip.Prefix // link-local ranges that pods reach
	HostLoopback []netip.Addr   // stand for the host's loopback to pods: one a family at most; none: nothing does
	Zone         string         // label topology.kubernetes.io/zone of this node; empty: none
	NodeBitsV4   int            // prefix length of a node's share of ClusterCIDR
	NodeBitsV6   int
	MTUBytes     int  // of pods; zero: what the underlay leaves
	HostPorts    bool // open NodePorts on the host
	LowPorts     int  // added to ports of the host that this user may not open; zero: they stay closed
	Metrics      Metrics
	Workers      int          // forwarding threads, and so queues of a pod
	Offload      bool         // segmentation offload towards the underlay
	Polling      bool         // idle workers look again for a while before they block
	Confine      confine.Mode // how strictly the daemon's processes give up rights; empty: On
	SocketPath   string
	RuntimeDir   string // what ends with the boot; a tmpfs, by preference
	StateDir     string
	DrainTimeout time.Duration // for connections that end with this process, at most MaxDrain; zero: none
	TakeOver     bool          // take the place of the daemon that runs on StateDir
	ConfigFile   string
	UnderlayNote string // how Underlay was found; empty: it was given
}

// Store says where the cluster's state is kept.
type Store struct {
	Kubernetes bool   // it is Kubernetes' API server; then nothing of an etcd below is given
	Kubeconfig string // file that says where that is and who asks; empty: a pod's service account
	APIServer  string // its URL, in the place of the one that either says

	URLs         []string // of an external etcd; none: embedded
	ListenClient string   // the embedded store's client URL for further nodes; empty: none
	CA           string   // PEM files
	Cert, Key    string
	Insecure     bool // the embedded store may listen off loopback without TLS
}

// Metrics says where the node tells how it is.
type Metrics struct {
	Addrs   []netip.AddrPort // none: nowhere
	ForPods bool             // pods may ask
}

// DNS is what the node answers pods' DNS questions by.
type DNS struct {
	Addrs    []netip.Addr     // service addresses at which it does; none: nowhere
	Domain   string           // of the cluster's names
	Upstream []netip.AddrPort // whom other names are asked of; none: the host's resolv.conf says
}

// Embedded reports whether this node runs the store itself.
func (s *Store) Embedded() bool { return !s.Kubernetes && len(s.URLs) == 0 }

// InTheClear are the URLs whose traffic leaves the host without TLS.
func (s *Store) InTheClear() []string {
	var out []string
	for _, text := range s.URLs {
		if u, err := url.Parse(text); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
			out = append(out, text)
		}
	}
	return out
}

// MaxDrain bounds DrainTimeout: clients that come meanwhile wait or are refused.
const MaxDrain = 10 * time.Minute

// Numbers we chose.
const (
	defaultUDPPort    = 8472  // flannel's and Linux's VXLAN port, not IANA's 4789
	defaultLowPorts   = 10000 // 80 is open at 10080: as k3s does it for its rootless servers
	defaultNodeBitsV4 = 24
	defaultNodeBitsV6 = 64
	// maxDefaultWorkers keeps a large machine from giving every pod more queues
	// than its traffic fills; --workers says otherwise.
	maxDefaultWorkers = 4
	maxWorkers        = 64
	// Pods need IPv6's minimum (RFC 8200 section 5).
	minMTUBytes, maxMTUBytes = 1280, 65535
	// maxStateDirBytes leaves room for the embedded store's unix socket below it,
	// in the 107 bytes a socket's path may have (unix(7)).
	maxStateDirBytes = 107 - len("/store/store.sock")
)

func defaults() Config {
	return Config{
		UDPPort:     defaultUDPPort,
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		NodeBitsV4:  defaultNodeBitsV4,
		NodeBitsV6:  defaultNodeBitsV6,
		DNS:         DNS{Domain: "cluster.local"},
		HostPorts:   true,
		LowPorts:    defaultLowPorts,
		Workers:     min(runtime.NumCPU(), maxDefaultWorkers),
		Offload:     true,
		Polling:     true,
		Confine:     confine.On,
	}
}

// PodBits is the prefix length of a node's share of p, a cluster prefix.
func (c *Config) PodBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return c.NodeBitsV4
	}
	return c.NodeBitsV6
}

// validate checks what single values can't: how they go together. Every error
// names the flag, its value and what would be right.
func (c *Config) validate() error {
	for _, check := range []func() error{c.validatePrefixes, c.validateUnderlay, c.validateStore, c.validatePaths} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validatePrefixes() error {
	for _, cluster := range c.ClusterCIDR {
		flag, largest := "node-cidr-size-v4", 30
		if cluster.Addr().Is6() {
			flag, largest = "node-cidr-size-v6", 126
		}
		// A share needs a network address, the router address and a pod.
		if n := c.PodBits(cluster); n < cluster.Bits() || n > largest {
			return fmt.Errorf("--%s %d: want %d to %d, a share of --cluster-cidr %v", flag, n, cluster.Bits(), largest, cluster)
		}
		for _, service := range c.ServiceCIDR {
			if cluster.Overlaps(service) {
				return fmt.Errorf("--service-cidr %v: overlaps --cluster-cidr %v; want a prefix of its own", service, cluster)
			}
		}
	}
	for _, service := range c.ServiceCIDR {
		if !hasFamily(c.ClusterCIDR, service) {
			return fmt.Errorf("--service-cidr %v: pods have no address of this family; want --cluster-cidr to have one, or leave it out", service)
		}
	}
	if err := c.validateDNS(); err != nil {
		return err
	}
	if err := c.validateHostLoopback(); err != nil {
		return err
	}
	return c.validateLBCIDR()
}

func (c *Config) validateHostLoopback() error {
	for _, a := range c.HostLoopback {
		for flag, ps := range map[string][]netip.Prefix{"cluster-cidr": c.ClusterCIDR, "service-cidr": c.ServiceCIDR, "lb-cidr": c.LBCIDR} {
			for _, p := range ps {
				if p.Contains(a) {
					return fmt.Errorf("--host-loopback %v: lies in --%s %v; want an address that nobody has", a, flag, p)
				}
			}
		}
		if slices.Contains(c.Underlay, a) {
			return fmt.Errorf("--host-loopback %v: is --underlay; want an address that nobody has", a)
		}
	}
	return nil
}

func (c *Config) validateDNS() error {
	for _, a := range c.DNS.Addrs {
		if !slices.ContainsFunc(c.ServiceCIDR, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return fmt.Errorf("--dns-address %v: lies in no --service-cidr %s; want a service address, or an empty --dns-address for none", a, join(c.ServiceCIDR))
		}
		if slices.Contains(c.DNS.Upstream, netip.AddrPortFrom(a, dns.ResolverPort)) {
			return fmt.Errorf("--dns-upstream %v: is --dns-address itself; want a resolver of the host's network", a)
		}
	}
	return nil
}

func (c *Config) validateLBCIDR() error {
	for _, lb := range c.LBCIDR {
		for _, p := range c.ClusterCIDR {
			if lb.Overlaps(p) {
				return fmt.Errorf("--lb-cidr %v: overlaps --cluster-cidr %v; want a prefix of its own", lb, p)
			}
		}
		for _, p := range c.ServiceCIDR {
			if lb.Overlaps(p) {
				return fmt.Errorf("--lb-cidr %v: overlaps --service-cidr %v; want a prefix of its own", lb, p)
			}
		}
		for _, a := range c.Underlay {
			if lb.Contains(a) {
				return fmt.Errorf("--lb-cidr %v: holds %v, this node's own address; want a prefix without the nodes' addresses", lb, a)
			}
		}
	}
	return nil
}

func hasFamily(ps []netip.Prefix, like netip.Prefix) bool {
	for _, p := range ps {
		if p.Addr().Is4() == like.Addr().Is4() {
			return true
		}
	}
	return false
}

func (c *Config) validateUnderlay() error {
	for _, a := range c.Underlay {
		for _, p := range c.ClusterCIDR {
			if p.Contains(a) {
				return fmt.Errorf("--underlay %v: lies in --cluster-cidr %v, which is for pods; want an address of the host, or another --cluster-cidr", a, p)
			}
		}
		for _, p := range c.ServiceCIDR {
			if p.Contains(a) {
				return fmt.Errorf("--underlay %v: lies in --service-cidr %v; want an address of the host, or another --service-cidr", a, p)
			}
		}
	}
	return nil
}

func (c *Config) validateStore() error {
	s := &c.Store
	if !s.Kubernetes && s.Kubeconfig+s.APIServer != "" {
		given := "kubeconfig " + s.Kubeconfig
		if s.Kubeconfig == "" {
			given = "apiserver " + s.APIServer
		}
		return fmt.Errorf("--%s: this is for Kubernetes' API server; want --store kubernetes with it", given)
	}
	if s.Kubernetes && len(c.LBCIDR) > 0 {
		return fmt.Errorf("--lb-cidr %s: in Kubernetes a cloud's controller gives load balancers their addresses; want none with --store kubernetes", join(c.LBCIDR))
	}
	if (s.Cert == "") != (s.Key == "") {
		given, missing := "store-cert "+s.Cert, "store-key"
		if s.Cert == "" {
			given, missing = "store-key "+s.Key, "store-cert"
		}
		return fmt.Errorf("--%s: a certificate and its key go together; want --%s FILE too", given, missing)
	}
	if !s.Embedded() {
		if s.ListenClient != "" {
			return fmt.Errorf("--listen-client %s: this is for the embedded store; want --store embedded, or no --listen-client", s.ListenClient)
		}
		return nil
	}
	if s.ListenClient == "" {
		return nil
	}
	u, err := url.Parse(s.ListenClient)
	if err != nil {
		return fmt.Errorf("--listen-client %s: %w", s.ListenClient, err)
	}
	switch tls := s.Cert != ""; {
	case u.Scheme == "https" && !tls:
		return fmt.Errorf("--listen-client %s: TLS needs a certificate; want --store-cert FILE and --store-key FILE", s.ListenClient)
	case u.Scheme == "http" && tls:
		return fmt.Errorf("--listen-client %s: a certificate is given; want https://%s", s.ListenClient, u.Host)
	case u.Scheme == "http" && !s.Insecure && !isLoopback(u.Hostname()):
		return fmt.Errorf("--listen-client %s: whoever reaches it owns the cluster; want https with --store-ca, --store-cert and --store-key, a loopback address, or --insecure", s.ListenClient)
	case u.Scheme == "https" && s.CA == "" && !s.Insecure && !isLoopback(u.Hostname()):
		return fmt.Errorf("--listen-client %s: without --store-ca any client is let in; want --store-ca FILE, which clients' certificates must be signed by, or --insecure", s.ListenClient)
	}
	return nil
}

func isLoopback(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.IsLoopback()
	}
	return host == "localhost"
}

func (c *Config) validatePaths() error {
	if err := api.CheckSocketPath(c.SocketPath); err != nil {
		return fmt.Errorf("--socket %s: %w; want a shorter path", c.SocketPath, err)
	}
	if n := len(c.StateDir); c.Store.Embedded() && n > maxStateDirBytes {
		return fmt.Errorf("--state-dir %s: %d bytes; want %d at most, for the embedded store's unix socket below it", c.StateDir, n, maxStateDirBytes)
	}
	return nil
}

// String is the store in the form of the flag.
func (s *Store) String() string {
	switch {
	case s.Kubernetes:
		return "kubernetes"
	case s.Embedded():
		return "embedded"
	}
	return "etcd=" + strings.Join(s.URLs, ",")
}

// hostPortOK reports whether a URL's host part names a host and a port.
func hostPortOK(hostport string) bool {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || host == "" {
		return false
	}
	_, err = parsePort(port)
	return err == nil
}
