package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"vswitch/internal/confine"
)

// envPrefix and upper case with '_' for '-' make a flag's name its environment
// variable's: udp-port is VSWITCH_UDP_PORT.
const envPrefix = "VSWITCH_"

// EnvName is the environment variable of a flag.
func EnvName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Loader binds a Config to flags. The order of sources is: the flag, the
// environment, the file, the default.
type Loader struct {
	cfg   Config
	flags *pflag.FlagSet
	// host answers for the defaults that depend on the machine; replaced in tests.
	host host
}

// NewLoader registers a flag in fs for every setting of `vswitch run`.
func NewLoader(fs *pflag.FlagSet) *Loader {
	l := &Loader{cfg: defaults(), flags: fs, host: thisHost{}}
	l.register()
	return l
}

func (l *Loader) register() {
	c, fs := &l.cfg, l.flags
	add := func(name string, v pflag.Value, usage string) {
		fs.VarP(v, name, "", usage)
	}
	flag := func(name string, dst *bool, usage string) {
		fs.VarP(value[bool]{dst, "bool", parseBool, strconv.FormatBool}, name, "", usage)
		fs.Lookup(name).NoOptDefVal = "true"
	}
	add("node", value[string]{&c.Node, "NAME", parseNode, same}, "this node's `NAME` in the cluster (default: the host name)")
	add("underlay", value[[]netip.Addr]{&c.Underlay, "ADDR[,ADDR]", parseUnderlay, join[netip.Addr]}, "`ADDR[,ADDR]` at which other nodes reach this one, one a family (default: that of the default route)")
	add("udp-port", value[uint16]{&c.UDPPort, "PORT", parseUDPPort, formatUDPPort}, "first UDP `PORT` of the tunnel, or auto: ports that are free, kept from then on (default: 8472 for root, auto for an ordinary user)")
	fs.Lookup("udp-port").DefValue = ""
	add("store", storeFlag{&c.Store}, "cluster `STORE`: embedded, kubernetes, or etcd=URL[,URL...]")
	add("kubeconfig", value[string]{&c.Store.Kubeconfig, "FILE", parsePath, same}, "`FILE` that says where Kubernetes' API server is and who asks (default: a pod's service account)")
	add("apiserver", value[string]{&c.Store.APIServer, "URL", parseURL, same}, "`URL` of Kubernetes' API server in the place of the one that is known otherwise, which for a pod is a service address that vswitch itself provides")
	add("cluster-cidr", value[[]netip.Prefix]{&c.ClusterCIDR, "CIDR[,CIDR]", parsePrefixes, join[netip.Prefix]}, "`CIDR[,CIDR]` of all pods, one a family")
	add("service-cidr", value[[]netip.Prefix]{&c.ServiceCIDR, "CIDR[,CIDR]", parsePrefixes, join[netip.Prefix]}, "`CIDR[,CIDR]` of service addresses, one a family")
	add("lb-cidr", value[[]netip.Prefix]{&c.LBCIDR, "CIDR[,CIDR]", parsePrefixes, join[netip.Prefix]}, "`CIDR[,CIDR]` of the addresses that LoadBalancer services get, one a family, the same on every node (default: they are served at the nodes' addresses)")
	flag("allow-external-ips", &c.ExternalIPs, "serve services' externalIPs: whoever may make a service can then take an address from this node's pods")
	add("dns-address", value[[]netip.Addr]{&c.DNS.Addrs, "ADDR[,ADDR]", parseDNSAddrs, join[netip.Addr]}, "service `ADDR[,ADDR]` at which this node answers pods' DNS questions, unless a service has port 53 there; empty: it does not (default: the tenth address of each --service-cidr)")
	add("dns-domain", value[string]{&c.DNS.Domain, "NAME", parseDomain, same}, "domain `NAME` of the cluster's services")
	add("dns-upstream", value[[]netip.AddrPort]{&c.DNS.Upstream, "ADDR[:PORT][,...]", parseResolvers, join[netip.AddrPort]}, "`ADDR[:PORT][,...]` of the resolvers for all other names (default: those of /etc/resolv.conf)")
	add("allow-egress", value[[]netip.Prefix]{&c.AllowEgress, "CIDR[,...]", parseLinkLocal, join[netip.Prefix]}, "IPv4 link-local `CIDR[,...]` that pods reach through this host, such as the metadata service 169.254.169.254/32 (default: none)")
	add("host-loopback", value[[]netip.Addr]{&c.HostLoopback, "ADDR[,ADDR]", parseHostLoopback, join[netip.Addr]}, "`ADDR[,ADDR]` at which pods reach this host's own loopback, one a family (default: they don't)")
	add("zone", value[string]{&c.Zone, "NAME", parseZone, same}, "`NAME` of the zone this node is in, for trafficDistribution and topology hints (default: none)")
	add("node-cidr-size-v4", value[int]{&c.NodeBitsV4, "BITS", parseInt(1, 30, "a prefix length"), strconv.Itoa}, "prefix length in `BITS` of a node's share of the IPv4 cluster CIDR")
	add("node-cidr-size-v6", value[int]{&c.NodeBitsV6, "BITS", parseInt(1, 126, "a prefix length"), strconv.Itoa}, "prefix length in `BITS` of a node's share of the IPv6 cluster CIDR")
	add("socket", value[string]{&c.SocketPath, "PATH", parsePath, same}, "`PATH` of the API's unix socket (default: /run/vswitch/vswitch.sock, or the same under $XDG_RUNTIME_DIR)")
	add("runtime-dir", value[string]{&c.RuntimeDir, "DIR", parsePath, same}, "`DIR` for the memory of connections, which then outlive the whole daemon, if it is on a tmpfs (default: that of --socket)")
	add("state-dir", value[string]{&c.StateDir, "DIR", parsePath, same}, "`DIR` for what must survive a restart (default: /var/lib/vswitch, or vswitch under $XDG_STATE_HOME or ~/.local/state)")
	add("drain-timeout", value[time.Duration]{&c.DrainTimeout, "DURATION", parseDuration(MaxDrain), time.Duration.String}, "how long connections that end with this process (egress, NodePort, proxy mode) have to end when it stops or is replaced, while it takes no more of them; 0: they are reset at once")
	flag("take-over", &c.TakeOver, "take the place of the vswitch that runs on --state-dir, if one does, while connections go on; what takes this one's place later leaves it running, idle, until it is told to stop")
	add("listen-client", value[string]{&c.Store.ListenClient, "URL", parseListen, same}, "`URL` at which the embedded store serves further nodes (default: none)")
	add("store-ca", value[string]{&c.Store.CA, "FILE", parsePath, same}, "PEM `FILE` of the authority that signs the store's and its clients' certificates")
	add("store-cert", value[string]{&c.Store.Cert, "FILE", parsePath, same}, "PEM `FILE` with this node's certificate for the store")
	add("store-key", value[string]{&c.Store.Key, "FILE", parsePath, same}, "PEM `FILE` with its key")
	flag("insecure", &c.Store.Insecure, "let the embedded store listen off loopback without TLS")
	add("mtu", value[int]{&c.MTUBytes, "BYTES", parseMTU, formatMTU}, "`BYTES` of pods' MTU, or auto: what the underlay leaves")
	flag("host-ports", &c.HostPorts, "serve NodePorts on this host's addresses")
	add("metrics-address", value[[]netip.AddrPort]{&c.Metrics.Addrs, "ADDR:PORT[,...]", parseServed, formatServed}, "`ADDR:PORT[,...]` at which the node serves /metrics, /healthz and /readyz over HTTP, or off")
	flag("metrics-for-pods", &c.Metrics.ForPods, "let pods reach --metrics-address")
	add("low-port-offset", value[int]{&c.LowPorts, "N", parseLowPorts, strconv.Itoa}, "`N` added to a port of the host that this user may not open, as those below 1024: the sum is open in its stead; 0: neither is")
	add("workers", value[int]{&c.Workers, "N", parseInt(1, maxWorkers, "a number of threads"), strconv.Itoa}, "`N` forwarding threads, and queues of each pod")
	add("offload", value[bool]{&c.Offload, "MODE", parseOffload, formatOffload}, "UDP segmentation `MODE` towards the underlay: auto or off")
	add("power", value[bool]{&c.Polling, "MODE", parsePower, formatPower}, "what an idle worker does: `MODE` auto looks again for some microseconds where that has paid, eco sleeps at once")
	add("confine", value[confine.Mode]{&c.Confine, "MODE", parseConfine, formatConfine}, "what the daemon gives up once it is set up (docs/security.md): `MODE` on, off to look for faults, or trap, to end at a system call that it should not need")
	add("config", value[string]{&c.ConfigFile, "FILE", parsePath, same}, "YAML `FILE` with any of these settings, by the same names")
}

// Load reads what the parsed flags left open from the environment and the file,
// fills in what depends on the machine, and checks the whole. environ is
// os.LookupEnv, or a test's.
func (l *Loader) Load(environ func(string) (string, bool)) (Config, error) {
	given := map[string]bool{}
	l.flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var errs []error
	l.flags.VisitAll(func(f *pflag.Flag) {
		text, ok := environ(EnvName(f.Name))
		if given[f.Name] || !ok || !ours(f) {
			return
		}
		given[f.Name] = true
		if err := f.Value.Set(text); err != nil {
			errs = append(errs, fmt.Errorf("%s=%q (--%s in the environment): %w", EnvName(f.Name), text, f.Name, err))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	if l.cfg.ConfigFile != "" {
		if err := l.readFile(l.cfg.ConfigFile, given); err != nil {
			return Config{}, err
		}
	}
	if !given["udp-port"] && !l.host.root() {
		l.cfg.UDPPort = 0 // users can't agree on one
	}
	if err := l.cfg.fill(l.host); err != nil {
		return Config{}, err
	}
	if err := l.cfg.validate(); err != nil {
		return Config{}, err
	}
	return l.cfg, nil
}

// ours tells this package's flags from those of the command library (help).
func ours(f *pflag.Flag) bool {
	switch f.Value.(type) {
	case storeFlag, value[string], value[confine.Mode], value[bool], value[time.Duration], value[int], value[uint16], value[[]netip.Addr], value[[]netip.AddrPort], value[[]netip.Prefix]:
		return true
	}
	return false
}

// readFile sets what is not given otherwise from a YAML file, and notes it. A key
// that is no flag's name is an error, and so is one given twice.
func (l *Loader) readFile(path string, given map[string]bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	dec := json.NewDecoder(bytes.NewReader(asJSON))
	dec.UseNumber()
	var settings map[string]any
	if err := dec.Decode(&settings); err != nil {
		return fmt.Errorf("--config %s: want a mapping of settings such as \"udp-port: 8472\": %w", path, err)
	}
	var errs []error
	for _, name := range sortedKeys(settings) {
		f := l.flags.Lookup(name)
		if f == nil || !ours(f) || name == "config" {
			errs = append(errs, fmt.Errorf("--config %s: unknown setting %q; want one of: %s", path, name, strings.Join(l.names(), ", ")))
			continue
		}
		if given[name] {
			continue
		}
		given[name] = true
		text, err := scalar(settings[name])
		if err == nil {
			err = f.Value.Set(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--config %s: %s: %s (--%s in the file): %w", path, name, text, name, err))
		}
	}
	return errors.Join(errs...)
}

// scalar is a file's value as a flag would be given it: a list is joined by commas.
func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	case []any:
		var parts []string
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return fmt.Sprint(v), errors.New("want a list of strings")
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	}
	return fmt.Sprint(v), errors.New("want one value or a list of strings")
}

func (l *Loader) names() []string {
	var names []string
	l.flags.VisitAll(func(f *pflag.Flag) {
		if ours(f) && f.Name != "config" {
			names = append(names, f.Name)
		}
	})
	return names
}

func sortedKeys(m map[string]any) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
