package slirp

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/spf13/pflag"

	"vswitch/internal/rootless/plan"
	"vswitch/vswitch/frame"
)

// Options are what the command line says.
type Options struct {
	Configure bool // give the interface addresses and routes
	ExitFD    int  // -1: none
	ReadyFD   int  // -1: none
	MTUBytes  int
	IPv6      bool
	API       string // path of the socket; empty: none
	Network   netip.Prefix
	NoDNS     bool
	MAC       frame.MAC // zero: any

	NoHostLoopback bool

	NetNS     string // path
	UserNS    string // path; empty: the one that the network namespace belongs to
	Interface string
	Ignored   []string // options given that mean nothing here

	netnsType, macText, cidrText, target string
	outbound, outbound6                  string
	sandbox, seccomp                     bool
}

// Defaults of slirp4netns(1).
const (
	defaultMTUBytes = 1500
	noFD            = -1
)

// networkIPv6 is the one that slirp4netns has, and that RootlessKit knows it has.
var networkIPv6 = netip.MustParsePrefix("fd00::/64")

// AddFlags defines the options, by slirp4netns's names.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	f.BoolVarP(&o.Configure, "configure", "c", false, "give the interface its addresses and routes, and bring up lo")
	f.IntVarP(&o.ExitFD, "exit-fd", "e", noFD, "end when something happens on descriptor `FD`")
	f.IntVarP(&o.ReadyFD, "ready-fd", "r", noFD, "write \"1\" to descriptor `FD` when the network works")
	f.IntVarP(&o.MTUBytes, "mtu", "m", defaultMTUBytes, "MTU in `BYTES`, 1280 to 65521")
	f.BoolVarP(&o.IPv6, "enable-ipv6", "6", false, "have IPv6 as well")
	f.StringVarP(&o.API, "api-socket", "a", "", "take requests at the unix socket `PATH`")
	f.StringVar(&o.cidrText, "cidr", plan.DefaultIPv4.String(), "`NETWORK` of the interface")
	f.BoolVar(&o.NoHostLoopback, "disable-host-loopback", false, "keep the host's own loopback closed")
	f.StringVar(&o.netnsType, "netns-type", "pid", "what the first argument is: `TYPE` pid or path")
	f.StringVar(&o.UserNS, "userns-path", "", "`PATH` of the user namespace, if the network namespace's own is not meant")
	f.BoolVar(&o.NoDNS, "disable-dns", false, "answer no names")
	f.StringVar(&o.macText, "macaddress", "", "`MAC` address of the interface")
	f.BoolVar(&o.sandbox, "enable-sandbox", false, "no effect: nothing here needs files or privilege that a sandbox would take away")
	f.BoolVar(&o.seccomp, "enable-seccomp", false, "no effect")
	f.StringVar(&o.target, "target-type", "netns", "`TYPE` of the target: netns alone is known")
	f.StringVar(&o.outbound, "outbound-addr", "", "refused: connections leave as the host's routes say")
	f.StringVar(&o.outbound6, "outbound-addr6", "", "refused")
}

// Complete checks what was given together with the arguments behind the options:
// PID or PATH, and the interface's name.
func (o *Options) Complete(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments: want a process or a path, and the interface's name", len(args))
	}
	switch o.netnsType {
	case "path":
		o.NetNS = args[0]
	case "pid":
		pid, err := strconv.ParseUint(args[0], 10, 31)
		if err != nil || pid == 0 {
			return fmt.Errorf("process %q: want its number, or --netns-type=path", args[0])
		}
		o.NetNS = fmt.Sprintf("/proc/%d/ns/net", pid)
	default:
		return fmt.Errorf("--netns-type %s: want pid or path", o.netnsType)
	}
	o.Interface = args[1]
	if o.target != "netns" {
		return fmt.Errorf("--target-type %s: want netns", o.target)
	}
	if o.outbound != "" || o.outbound6 != "" {
		return errors.New("--outbound-addr: connections leave by the address that the host's routes say; leave it out")
	}
	var err error
	if o.Network, err = netip.ParsePrefix(o.cidrText); err != nil || !o.Network.Addr().Is4() {
		return fmt.Errorf("--cidr %s: want an IPv4 network", o.cidrText)
	}
	if o.macText != "" {
		if o.MAC, err = frame.ParseMAC(o.macText); err != nil {
			return fmt.Errorf("--macaddress: %w", err)
		}
	}
	if o.sandbox {
		o.Ignored = append(o.Ignored, "--enable-sandbox")
	}
	if o.seccomp {
		o.Ignored = append(o.Ignored, "--enable-seccomp")
	}
	return nil
}

// Plan is the network that the options ask for; queues is one a worker.
func (o *Options) Plan(mac frame.MAC, queues int) (plan.Plan, error) {
	if !o.MAC.IsZero() {
		mac = o.MAC
	}
	p := plan.Plan{
		Interface: o.Interface, MTUBytes: o.MTUBytes, Queues: queues, MAC: mac,
		NoDNS: o.NoDNS, HostLoopback: !o.NoHostLoopback,
	}
	prefixes := []netip.Prefix{o.Network}
	if o.IPv6 {
		prefixes = append(prefixes, networkIPv6)
	}
	var err error
	if p.Nets, err = plan.NetsOf(prefixes); err != nil {
		return p, fmt.Errorf("--cidr %w", err)
	}
	return p, p.Check()
}
