package config

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"vswitch/internal/confine"
)

// lab is a host whose answers don't depend on the machine the test runs on.
type lab struct{ hostname string }

func (l lab) name() (string, error) { return l.hostname, nil }
func (lab) underlay([]netip.Prefix) (netip.Addr, string) {
	return netip.MustParseAddr("192.0.2.1"), "default route"
}
func (lab) socket() (string, error)   { return "/run/vswitch/vswitch.sock", nil }
func (lab) stateDir() (string, error) { return "/var/lib/vswitch", nil }
func (lab) root() bool                { return true }

// sources is what one run of the command is given.
type sources struct {
	args []string
	env  map[string]string
	file string // content; empty: none
}

func load(t *testing.T, s sources, h host) (Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	l := NewLoader(fs)
	l.host = h
	if s.file != "" {
		path := filepath.Join(t.TempDir(), "vswitch.yaml")
		if err := os.WriteFile(path, []byte(s.file), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = append(s.args, "--config", path)
	}
	if err := fs.Parse(s.args); err != nil {
		return Config{}, err
	}
	return l.Load(func(name string) (string, bool) { v, ok := s.env[name]; return v, ok })
}

func TestRunAloneIsComplete(t *testing.T) {
	c, err := load(t, sources{}, lab{"Node-A"})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Node:        "node-a",
		Underlay:    []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		UDPPort:     8472,
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		NodeBitsV4:  24, NodeBitsV6: 64,
		DNS:       DNS{Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, Domain: "cluster.local"},
		HostPorts: true, LowPorts: 10000, Workers: c.Workers, Offload: true, Polling: true, Confine: confine.On,
		SocketPath: "/run/vswitch/vswitch.sock", RuntimeDir: "/run/vswitch", StateDir: "/var/lib/vswitch",
		UnderlayNote: "default route",
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if c.Workers < 1 || c.Workers > maxDefaultWorkers {
		t.Errorf("%d workers by default", c.Workers)
	}
}

// A cluster of Kubernetes' has a DNS service: the node answers only if it is told to.
func TestTheNodesDNSInKubernetes(t *testing.T) {
	for args, want := range map[string]string{"--store=kubernetes": "", "--store=kubernetes --dns-address=10.96.0.10": "10.96.0.10", "": "10.96.0.10,fd00:10:96::a"} {
		c, err := load(t, sources{args: strings.Fields(args)}, lab{"a"})
		if err != nil {
			t.Fatal(err)
		}
		if got := join(c.DNS.Addrs); got != want {
			t.Errorf("%q: DNS at %q, want %q", args, got, want)
		}
	}
}

// TestEverySettingFromEverySource gives each setting by flag, environment and
// file, and looks at the field.
func TestEverySettingFromEverySource(t *testing.T) {
	tests := []struct {
		name, value string
		with        []string // further arguments that this one needs
		got         func(*Config) any
		want        any
	}{
		{name: "node", value: "a.example", got: func(c *Config) any { return c.Node }, want: "a.example"},
		{name: "underlay", value: "192.0.2.7,2001:db8::7", got: func(c *Config) any { return join(c.Underlay) }, want: "192.0.2.7,2001:db8::7"},
		{name: "udp-port", value: "4789", got: func(c *Config) any { return c.UDPPort }, want: uint16(4789)},
		{name: "store", value: "etcd=https://192.0.2.9:2379,http://etcd.example:2379", got: func(c *Config) any { return c.Store.String() },
			want: "etcd=https://192.0.2.9:2379,http://etcd.example:2379"},
		{name: "kubeconfig", value: "/tmp/kubeconfig", with: []string{"--store=kubernetes"}, got: func(c *Config) any { return c.Store.Kubeconfig }, want: "/tmp/kubeconfig"},
		{name: "apiserver", value: "https://192.0.2.9:6443", with: []string{"--store=kubernetes"}, got: func(c *Config) any { return c.Store.APIServer }, want: "https://192.0.2.9:6443"},
		{name: "cluster-cidr", value: "10.1.0.0/16,2001:db8:1::/48", with: []string{"--node-cidr-size-v6=64"},
			got: func(c *Config) any { return join(c.ClusterCIDR) }, want: "10.1.0.0/16,2001:db8:1::/48"},
		{name: "service-cidr", value: "10.2.0.0/20", got: func(c *Config) any { return join(c.ServiceCIDR) }, want: "10.2.0.0/20"},
		{name: "lb-cidr", value: "198.51.100.0/24", got: func(c *Config) any { return join(c.LBCIDR) }, want: "198.51.100.0/24"},
		{name: "allow-external-ips", value: "true", got: func(c *Config) any { return c.ExternalIPs }, want: true},
		{name: "dns-address", value: "10.96.0.53,fd00:10:96::53", got: func(c *Config) any { return join(c.DNS.Addrs) }, want: "10.96.0.53,fd00:10:96::53"},
		{name: "dns-domain", value: "k8s.example.", got: func(c *Config) any { return c.DNS.Domain }, want: "k8s.example"},
		{name: "dns-upstream", value: "192.0.2.53,[2001:db8::53]:5353,fe80::1%eth0", got: func(c *Config) any { return join(c.DNS.Upstream) },
			want: "192.0.2.53:53,[2001:db8::53]:5353,[fe80::1%eth0]:53"},
		{name: "allow-egress", value: "169.254.169.254/32,169.254.170.0/24", got: func(c *Config) any { return join(c.AllowEgress) }, want: "169.254.169.254/32,169.254.170.0/24"},
		{name: "host-loopback", value: "10.0.2.2,fd00::2", got: func(c *Config) any { return join(c.HostLoopback) }, want: "10.0.2.2,fd00::2"},
		{name: "zone", value: "eu-1a", got: func(c *Config) any { return c.Zone }, want: "eu-1a"},
		{name: "node-cidr-size-v4", value: "26", got: func(c *Config) any { return c.NodeBitsV4 }, want: 26},
		{name: "node-cidr-size-v6", value: "80", got: func(c *Config) any { return c.NodeBitsV6 }, want: 80},
		{name: "socket", value: "/tmp/v.sock", got: func(c *Config) any { return c.SocketPath }, want: "/tmp/v.sock"},
		{name: "runtime-dir", value: "/tmp/run", got: func(c *Config) any { return c.RuntimeDir }, want: "/tmp/run"},
		{name: "state-dir", value: "/tmp/state", got: func(c *Config) any { return c.StateDir }, want: "/tmp/state"},
		{name: "drain-timeout", value: "1m30s", got: func(c *Config) any { return c.DrainTimeout }, want: 90 * time.Second},
		{name: "take-over", value: "true", got: func(c *Config) any { return c.TakeOver }, want: true},
		{name: "listen-client", value: "http://127.0.0.1:2379", got: func(c *Config) any { return c.Store.ListenClient }, want: "http://127.0.0.1:2379"},
		{name: "store-ca", value: "/tmp/ca.pem", got: func(c *Config) any { return c.Store.CA }, want: "/tmp/ca.pem"},
		{name: "store-cert", value: "/tmp/cert.pem", with: []string{"--store-key=/tmp/key.pem"}, got: func(c *Config) any { return c.Store.Cert }, want: "/tmp/cert.pem"},
		{name: "store-key", value: "/tmp/key.pem", with: []string{"--store-cert=/tmp/cert.pem"}, got: func(c *Config) any { return c.Store.Key }, want: "/tmp/key.pem"},
		{name: "insecure", value: "true", got: func(c *Config) any { return c.Store.Insecure }, want: true},
		{name: "mtu", value: "1400", got: func(c *Config) any { return c.MTUBytes }, want: 1400},
		{name: "host-ports", value: "false", got: func(c *Config) any { return c.HostPorts }, want: false},
		{name: "metrics-address", value: "127.0.0.1:9472,[2001:db8::7]:9472", got: func(c *Config) any { return join(c.Metrics.Addrs) }, want: "127.0.0.1:9472,[2001:db8::7]:9472"},
		{name: "metrics-address", value: "off", got: func(c *Config) any { return len(c.Metrics.Addrs) }, want: 0},
		{name: "metrics-for-pods", value: "true", got: func(c *Config) any { return c.Metrics.ForPods }, want: true},
		{name: "low-port-offset", value: "8000", got: func(c *Config) any { return c.LowPorts }, want: 8000},
		{name: "workers", value: "3", got: func(c *Config) any { return c.Workers }, want: 3},
		{name: "offload", value: "off", got: func(c *Config) any { return c.Offload }, want: false},
		{name: "power", value: "eco", got: func(c *Config) any { return c.Polling }, want: false},
		{name: "confine", value: "off", got: func(c *Config) any { return c.Confine }, want: confine.Off},
	}
	tested := map[string]bool{"config": true}
	for _, tt := range tests {
		tested[tt.name] = true
		for from, s := range map[string]sources{
			"flag": {args: []string{"--" + tt.name + "=" + tt.value}},
			"env":  {env: map[string]string{EnvName(tt.name): tt.value}},
			"file": {file: tt.name + ": \"" + tt.value + "\"\n"},
		} {
			t.Run(tt.name+" by "+from, func(t *testing.T) {
				s.args = append(s.args, tt.with...)
				c, err := load(t, s, lab{"a"})
				if err != nil {
					t.Fatal(err)
				}
				if got := tt.got(&c); got != tt.want {
					t.Errorf("got %v, want %v", got, tt.want)
				}
			})
		}
	}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	NewLoader(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if !tested[f.Name] {
			t.Errorf("--%s has no test", f.Name)
		}
	})
}

// TestBadValues gives every setting values that can't be, and wants a message
// that names the flag, the value and what would be right.
func TestBadValues(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want []string // all in the message
	}{
		{"node with upper case", []string{"--node=A"}, []string{"--node", `"A"`, "lower-case"}},
		{"node with a space", []string{"--node=a b"}, []string{"--node", `"a b"`, "lower-case"}},
		{"node too long", []string{"--node=" + strings.Repeat("a", 254)}, []string{"--node", "253"}},
		{"node empty", []string{"--node="}, []string{"--node", `""`, "want a name"}},
		{"underlay that is no address", []string{"--underlay=host1"}, []string{"--underlay", `"host1"`, "want one address"}},
		{"underlay unspecified", []string{"--underlay=0.0.0.0"}, []string{"--underlay", "0.0.0.0", "can't be reached"}},
		{"underlay link-local", []string{"--underlay=fe80::1"}, []string{"--underlay", "fe80::1", "can't be reached"}},
		{"underlay twice one family", []string{"--underlay=192.0.2.1,192.0.2.2"}, []string{"--underlay", "two of one family"}},
		{"underlay three", []string{"--underlay=192.0.2.1,2001:db8::1,192.0.2.2"}, []string{"--underlay", "3 given"}},
		{"underlay among pods", []string{"--underlay=10.244.3.4"}, []string{"--underlay 10.244.3.4", "--cluster-cidr 10.244.0.0/16", "want"}},
		{"underlay among services", []string{"--underlay=10.96.3.4"}, []string{"--underlay 10.96.3.4", "--service-cidr 10.96.0.0/16", "want"}},
		{"an offset that leaves ports low", []string{"--low-port-offset=1000"}, []string{"--low-port-offset", `"1000"`, "1024 to 64512"}},
		{"an offset beyond all ports", []string{"--low-port-offset=65000"}, []string{"--low-port-offset", "1024 to 64512"}},
		{"udp-port zero", []string{"--udp-port=0"}, []string{"--udp-port", `"0"`, "1 to 65535"}},
		{"udp-port too high", []string{"--udp-port=65536"}, []string{"--udp-port", `"65536"`, "1 to 65535"}},
		{"udp-port a word", []string{"--udp-port=vxlan"}, []string{"--udp-port", `"vxlan"`, "1 to 65535"}},
		{"an API server of another store", []string{"--apiserver=https://192.0.2.9:6443"}, []string{"--apiserver https://192.0.2.9:6443", "want --store kubernetes"}},
		{"load balancers of a cloud's", []string{"--store=kubernetes", "--lb-cidr=198.51.100.0/24"}, []string{"--lb-cidr 198.51.100.0/24", "want none with --store kubernetes"}},
		{"store unknown", []string{"--store=consul"}, []string{"--store", `"consul"`, "want embedded, kubernetes, or etcd=URL"}},
		{"store without URL", []string{"--store=etcd="}, []string{"--store", `"etcd="`, "etcd=URL"}},
		{"store URL without port", []string{"--store=etcd=http://192.0.2.1"}, []string{"--store", "http://192.0.2.1", "etcd=URL"}},
		{"store URL of another scheme", []string{"--store=etcd=ftp://192.0.2.1:1"}, []string{"--store", "ftp://192.0.2.1:1", "etcd=URL"}},
		{"cluster-cidr no prefix", []string{"--cluster-cidr=10.0.0.0"}, []string{"--cluster-cidr", `"10.0.0.0"`, "CIDR[,CIDR]"}},
		{"cluster-cidr with host bits", []string{"--cluster-cidr=10.1.2.3/16"}, []string{"--cluster-cidr", "10.1.2.3/16", "10.1.0.0/16"}},
		{"cluster-cidr loopback", []string{"--cluster-cidr=127.0.0.0/16"}, []string{"--cluster-cidr", "127.0.0.0/16", "can't be"}},
		{"cluster-cidr smaller than a node's share", []string{"--cluster-cidr=10.0.0.0/25"}, []string{"--node-cidr-size-v4 24", "25 to 30", "10.0.0.0/25"}},
		{"cluster-cidr twice one family", []string{"--cluster-cidr=10.1.0.0/16,10.2.0.0/16"}, []string{"--cluster-cidr", "two of one family"}},
		{"service-cidr in the cluster's", []string{"--service-cidr=10.244.9.0/24"}, []string{"--service-cidr 10.244.9.0/24", "overlaps --cluster-cidr 10.244.0.0/16"}},
		{"service-cidr of a family pods lack", []string{"--cluster-cidr=10.244.0.0/16"}, []string{"--service-cidr fd00:10:96::/112", "no address of this family"}},
		{"service-cidr no prefix", []string{"--service-cidr=x"}, []string{"--service-cidr", `"x"`, "CIDR[,CIDR]"}},
		{"dns-address that is no service's", []string{"--dns-address=192.0.2.53"}, []string{"--dns-address 192.0.2.53", "--service-cidr 10.96.0.0/16"}},
		{"dns-address no address", []string{"--dns-address=x"}, []string{"--dns-address", `"x"`, "ADDR[,ADDR]"}},
		{"dns-domain no name", []string{"--dns-domain=a..b"}, []string{"--dns-domain", `"a..b"`, "cluster.local"}},
		{"dns-upstream no address", []string{"--dns-upstream=dns.example.com"}, []string{"--dns-upstream", `"dns.example.com"`, "192.0.2.53:5353"}},
		{"dns-upstream that is dns-address", []string{"--dns-upstream=10.96.0.10"}, []string{"--dns-upstream 10.96.0.10", "--dns-address itself"}},
		{"allow-egress of what is allowed anyway", []string{"--allow-egress=192.0.2.0/24"}, []string{"--allow-egress", `"192.0.2.0/24"`, "169.254.169.254/32"}},
		{"allow-egress with the gateway in it", []string{"--allow-egress=169.254.0.0/16"}, []string{"--allow-egress", "without 169.254.1.1"}},
		{"host-loopback among pods", []string{"--host-loopback=10.244.0.9"}, []string{"--host-loopback 10.244.0.9", "--cluster-cidr 10.244.0.0/16"}},
		{"host-loopback at the node", []string{"--underlay=192.0.2.7", "--host-loopback=192.0.2.7"}, []string{"--host-loopback 192.0.2.7", "--underlay"}},
		{"lb-cidr among pods", []string{"--lb-cidr=10.244.9.0/24"}, []string{"--lb-cidr 10.244.9.0/24", "overlaps --cluster-cidr 10.244.0.0/16"}},
		{"lb-cidr among services", []string{"--lb-cidr=10.96.9.0/24"}, []string{"--lb-cidr 10.96.9.0/24", "overlaps --service-cidr 10.96.0.0/16"}},
		{"lb-cidr with the node in it", []string{"--underlay=192.0.2.7", "--lb-cidr=192.0.2.0/24"}, []string{"--lb-cidr 192.0.2.0/24", "holds 192.0.2.7"}},
		{"zone that is no label", []string{"--zone=a/b"}, []string{"--zone", `"a/b"`, "want a name"}},
		{"node-cidr-size-v4 a word", []string{"--node-cidr-size-v4=big"}, []string{"--node-cidr-size-v4", `"big"`, "1 to 30"}},
		{"node-cidr-size-v4 without room", []string{"--node-cidr-size-v4=31"}, []string{"--node-cidr-size-v4", `"31"`, "1 to 30"}},
		{"node-cidr-size-v4 wider than the cluster", []string{"--node-cidr-size-v4=12"}, []string{"--node-cidr-size-v4 12", "16 to 30"}},
		{"node-cidr-size-v6 wider than the cluster", []string{"--node-cidr-size-v6=32"}, []string{"--node-cidr-size-v6 32", "48 to 126"}},
		{"node-cidr-size-v6 without room", []string{"--node-cidr-size-v6=127"}, []string{"--node-cidr-size-v6", `"127"`, "1 to 126"}},
		{"socket empty", []string{"--socket="}, []string{"--socket", `""`, "want a path"}},
		{"socket too long", []string{"--socket=/" + strings.Repeat("x", 120)}, []string{"--socket", "121 bytes", "shorter"}},
		{"state-dir empty", []string{"--state-dir="}, []string{"--state-dir", `""`, "want a path"}},
		{"state-dir too long for a socket below it", []string{"--state-dir=/" + strings.Repeat("x", 90)}, []string{"--state-dir", "91 bytes", "90 at most"}},
		{"listen-client no URL", []string{"--listen-client=2379"}, []string{"--listen-client", `"2379"`, "http://ADDR:PORT"}},
		{"listen-client a name", []string{"--listen-client=http://etcd.example:2379"}, []string{"--listen-client", "etcd.example", "ADDR one of this host's"}},
		{"listen-client off loopback in clear text", []string{"--listen-client=http://192.0.2.1:2379"},
			[]string{"--listen-client http://192.0.2.1:2379", "--store-cert", "loopback", "--insecure"}},
		{"listen-client on the wildcard in clear text", []string{"--listen-client=http://0.0.0.0:2379"}, []string{"--listen-client http://0.0.0.0:2379", "--insecure"}},
		{"listen-client https without certificate", []string{"--listen-client=https://127.0.0.1:2379"}, []string{"--listen-client https://127.0.0.1:2379", "--store-cert"}},
		{"listen-client https without authority", []string{"--listen-client=https://192.0.2.1:2379", "--store-cert=c", "--store-key=k"},
			[]string{"--listen-client https://192.0.2.1:2379", "--store-ca"}},
		{"listen-client http with certificate", []string{"--listen-client=http://127.0.0.1:2379", "--store-cert=c", "--store-key=k"}, []string{"--listen-client", "https://127.0.0.1:2379"}},
		{"listen-client of an external store", []string{"--store=etcd=http://127.0.0.1:1", "--listen-client=http://127.0.0.1:2379"}, []string{"--listen-client", "--store embedded"}},
		{"store-ca empty", []string{"--store-ca="}, []string{"--store-ca", "want a path"}},
		{"store-cert alone", []string{"--store-cert=/c.pem"}, []string{"--store-cert /c.pem", "--store-key FILE"}},
		{"store-key alone", []string{"--store-key=/k.pem"}, []string{"--store-key /k.pem", "--store-cert FILE"}},
		{"insecure a word", []string{"--insecure=maybe"}, []string{"--insecure", `"maybe"`, "true or false"}},
		{"mtu a word", []string{"--mtu=big"}, []string{"--mtu", `"big"`, "auto, or 1280 to 65535"}},
		{"mtu below IPv6's", []string{"--mtu=1279"}, []string{"--mtu", `"1279"`, "1280"}},
		{"host-ports a number", []string{"--host-ports=2"}, []string{"--host-ports", `"2"`, "true or false"}},
		{"metrics-address without a port", []string{"--metrics-address=192.0.2.1"}, []string{"--metrics-address", `"192.0.2.1"`, "want off"}},
		{"metrics-address of port zero", []string{"--metrics-address=127.0.0.1:0"}, []string{"--metrics-address", `"127.0.0.1:0"`, "127.0.0.1:9472"}},
		{"metrics-for-pods a number", []string{"--metrics-for-pods=2"}, []string{"--metrics-for-pods", `"2"`, "true or false"}},
		{"workers none", []string{"--workers=0"}, []string{"--workers", `"0"`, "1 to 64"}},
		{"workers too many", []string{"--workers=65"}, []string{"--workers", `"65"`, "1 to 64"}},
		{"offload a word", []string{"--offload=on"}, []string{"--offload", `"on"`, "auto or off"}},
		{"config that is not there", []string{"--config=/nonexistent/v.yaml"}, []string{"--config /nonexistent/v.yaml", "no such file"}},
		{"a flag there isn't", []string{"--underlays=192.0.2.1"}, []string{"unknown flag: --underlays"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, sources{args: tt.args}, lab{"a"})
			wantMessage(t, err, tt.want)
		})
	}
}

func wantMessage(t *testing.T, err error, want []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("message %q lacks %q", err, w)
		}
	}
}

func TestBadEnvironmentAndFile(t *testing.T) {
	tests := []struct {
		name string
		give sources
		want []string
	}{
		{"environment names variable, value and flag", sources{env: map[string]string{"VSWITCH_UDP_PORT": "x"}}, []string{`VSWITCH_UDP_PORT="x"`, "--udp-port", "1 to 65535"}},
		{"file names key and value", sources{file: "mtu: 5\n"}, []string{"mtu: 5", "--mtu", "1280 to 65535"}},
		{"unknown key", sources{file: "udp_port: 1\n"}, []string{`unknown setting "udp_port"`, "udp-port"}},
		{"key given twice", sources{file: "mtu: 1400\nmtu: 1500\n"}, []string{"--config", `"mtu"`}},
		{"a file cannot name another", sources{file: "config: /tmp/other.yaml\n"}, []string{`unknown setting "config"`}},
		{"no mapping", sources{file: "- a\n- b\n"}, []string{"--config", "mapping"}},
		{"a mapping as value", sources{file: "mtu: {v4: 1}\n"}, []string{"mtu", "one value or a list"}},
		{"numbers in a list", sources{file: "cluster-cidr: [1, 2]\n"}, []string{"cluster-cidr: [1 2]", "list of strings"}},
		{"not YAML", sources{file: "mtu: [\n"}, []string{"--config"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.give, lab{"a"})
			wantMessage(t, err, tt.want)
		})
	}
}

func TestFlagBeforeEnvironmentBeforeFileBeforeDefault(t *testing.T) {
	const file = "udp-port: 1001\nmtu: 1401\nworkers: 1\nhost-ports: false\ncluster-cidr: [10.1.0.0/16, \"2001:db8::/48\"]\n"
	c, err := load(t, sources{
		args: []string{"--udp-port=1003"},
		env:  map[string]string{"VSWITCH_UDP_PORT": "1002", "VSWITCH_MTU": "1402"},
		file: file,
	}, lab{"a"})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.UDPPort, c.MTUBytes, c.Workers, c.HostPorts, join(c.ClusterCIDR), c.NodeBitsV4}
	want := []any{uint16(1003), 1402, 1, false, "10.1.0.0/16,2001:db8::/48", 24}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestConfigFileFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.yaml")
	if err := os.WriteFile(path, []byte("node: from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, sources{env: map[string]string{"VSWITCH_CONFIG": path}}, lab{"a"})
	if err != nil || c.Node != "from-file" {
		t.Errorf("node %q, err %v", c.Node, err)
	}
}

func TestHostNameThatWontDo(t *testing.T) {
	_, err := load(t, sources{}, lab{"host_1"})
	wantMessage(t, err, []string{"--node", `"host_1"`, "--node NAME"})
}

type homeless struct{ lab }

func (homeless) stateDir() (string, error) { return "", errors.New("$HOME is not defined") }

func (homeless) socket() (string, error) { return "", errors.New("no login session") }

// user is an ordinary one.
type user struct{ lab }

func (user) root() bool { return false }

func TestOnlyRootHasAPortByDefault(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    sources
		h    host
		want uint16
	}{
		{"root", sources{}, lab{"a"}, 8472},
		{"root who wants one chosen", sources{args: []string{"--udp-port=auto"}}, lab{"a"}, 0},
		{"a user", sources{}, user{lab{"a"}}, 0},
		{"a user with a flag", sources{args: []string{"--udp-port=8472"}}, user{lab{"a"}}, 8472},
		{"a user with a variable", sources{env: map[string]string{"VSWITCH_UDP_PORT": "9000"}}, user{lab{"a"}}, 9000},
		{"a user with a file", sources{file: "udp-port: 9001\n"}, user{lab{"a"}}, 9001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := load(t, tt.s, tt.h); err != nil || c.UDPPort != tt.want {
				t.Errorf("port %d, %v, want %d", c.UDPPort, err, tt.want)
			}
		})
	}
}

func TestNoSocketDirectory(t *testing.T) {
	_, err := load(t, sources{args: []string{"--state-dir=/tmp/state"}}, homeless{lab{"a"}})
	wantMessage(t, err, []string{"--socket", "no login session", "--socket PATH"})
}

func TestNoStateDirectory(t *testing.T) {
	_, err := load(t, sources{args: []string{"--socket=/tmp/v.sock"}}, homeless{lab{"a"}})
	wantMessage(t, err, []string{"--state-dir", "$HOME", "--state-dir DIR"})
}

func FuzzFile(f *testing.F) {
	f.Add("mtu: 1400\ncluster-cidr: [10.0.0.0/8]\n")
	f.Add("a: &a [*a]\n")
	f.Add("? {a: b}\n: 1\n")
	f.Add("null\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "v.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		l := NewLoader(fs)
		l.host = lab{"a"}
		l.cfg.ConfigFile = path
		_, _ = l.Load(func(string) (string, bool) { return "", false })
	})
}

func TestDNSCanBeTurnedOff(t *testing.T) {
	for name, s := range map[string]sources{
		"by flag": {args: []string{"--dns-address="}}, "in the environment": {env: map[string]string{"VSWITCH_DNS_ADDRESS": ""}},
		"in the file": {file: "dns-address: \"\"\n"}, "by services that have no tenth address": {args: []string{"--service-cidr=10.96.0.0/29"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := load(t, s, lab{"a"}); err != nil || len(c.DNS.Addrs) != 0 {
				t.Errorf("got %v, %v", c.DNS.Addrs, err)
			}
		})
	}
}

// A host without a network still has its own interface among the pods, whose address is
// no underlay: with it a daemon would refuse its own configuration.
func TestAPodsAddressIsNoUnderlay(t *testing.T) {
	var addrs []net.Addr
	for _, a := range []string{"127.0.0.1/8", "::1/128", "10.244.0.2/32", "fd00:10:244::2/128", "fe80::1/64"} {
		addrs = append(addrs, ipNet(t, a))
	}
	except := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	if a, ok := firstOutside(addrs, except); ok {
		t.Errorf("chosen: %v", a)
	}
	want := netip.MustParseAddr("192.0.2.7")
	if a, ok := firstOutside(append(addrs, ipNet(t, "192.0.2.7/24")), except); !ok || a != want {
		t.Errorf("chosen: %v %v, want %v", a, ok, want)
	}
}

func ipNet(t *testing.T, s string) *net.IPNet {
	t.Helper()
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	n.IP = ip
	return n
}
