package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vswitch/internal/confine"
	"vswitch/internal/keeper"
	"vswitch/internal/rootless"
	"vswitch/internal/rootless/copyup"
	"vswitch/internal/rootless/dataplane"
	"vswitch/internal/rootless/inside"
	"vswitch/internal/rootless/plan"
	"vswitch/vswitch/frame"
)

func newRootless() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rootless",
		Short: "Give a command a network of its own, as an ordinary user",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRootlessRun(), newRootlessAttach(), newRootlessInside(), newRootlessJoin(), newRootlessDataplane())
	return cmd
}

// rootlessOptions are the flags of `rootless run`.
type rootlessOptions struct {
	publish, only, except []string
	publishAt             []string
	copyUp, binds         []string
	cidr                  []string
	upstream              []string
	ifname                string
	mtu, workers          int
	lowPorts              uint16
	hostLoopback, oneID   bool
	engine                bool
	verbose               bool
	confine               string
}

const (
	defaultRootlessMTU = 65520
	rootlessInterface  = "tap0"
	maxRootlessWorkers = 2
	defaultLowPorts    = 10000 // as of vswitch run
)

func newRootlessRun() *cobra.Command {
	o := &rootlessOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG]...",
		Short: "Run a command in user, mount and network namespaces with a network",
		Long: `Run a command, a shell say, or with --engine podman, containerd or dockerd, in
user, mount and network namespaces of its own. It is root there, and has an interface
with addresses of both families, name servers and a way out: what it connects to is
reached from this user's own network, by ordinary sockets.

Ports that its processes listen at are open on the host as long as they do; who
connects is seen there with his own address. Processes that listen at 127.0.0.1
alone stay unseen.

Signals go on to the command, and its exit code is this one's; where it was
never begun, that is 125, 126 or 127 as container engines have it. It is killed
should this process be, and nothing is left of its network.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return unbegun(errors.New("want a command, such as: vswitch rootless run -- bash"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return unbegun(o.run(args)) },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return unbegun(flagError(cmd, err)) })
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringSliceVar(&o.publish, "publish", []string{"auto"}, "`PORTS` of the host that lead inside: auto, none, [ADDR:]PORT[:PORT][/tcp|udp]")
	f.StringSliceVar(&o.only, "publish-only", nil, "`PORTS` that auto is bound to: PORT[-PORT][/tcp|udp]")
	f.StringSliceVar(&o.except, "publish-except", nil, "`PORTS` that auto leaves alone: PORT[-PORT][/tcp|udp]")
	f.StringSliceVar(&o.publishAt, "publish-address", nil, "`ADDRS` of the host at which auto opens ports; all of them if not given")
	f.Uint16Var(&o.lowPorts, "low-port-offset", defaultLowPorts, "`N` added to a port of the host that this user may not open, as those below 1024; 0: they stay closed")
	f.StringSliceVar(&o.cidr, "cidr", []string{plan.DefaultIPv4.String(), plan.DefaultIPv6.String()}, "`PREFIXES` inside, one a family at most")
	f.StringSliceVar(&o.upstream, "dns-upstream", nil, "`ADDRS` that names are asked of; the host's resolv.conf says if not given")
	f.StringVar(&o.ifname, "interface", rootlessInterface, "`NAME` of the interface inside")
	f.IntVar(&o.mtu, "mtu", defaultRootlessMTU, "MTU inside, in `BYTES`")
	f.IntVar(&o.workers, "workers", min(runtime.NumCPU(), maxRootlessWorkers), "`N` threads that forward")
	f.BoolVar(&o.hostLoopback, "host-loopback", false, "let the command reach the host's own 127.0.0.1 and ::1, at its gateway's addresses")
	f.BoolVar(&o.oneID, "one-id", false, "map this user alone, although /etc/subuid grants more")
	f.BoolVar(&o.engine, "engine", false, "give the command what container engines want: directories they can write, processes and cgroups of its own")
	f.StringSliceVar(&o.copyUp, "copy-up", nil, "`DIRS` of the machine that the command can write, in memory and for itself alone")
	f.StringSliceVar(&o.binds, "bind", nil, "`SOURCE:DIR`: a directory or file of this user's that is seen at DIR inside")
	f.BoolVar(&o.verbose, "verbose", false, "say what is opened and closed")
	addConfine(cmd, &o.confine)
	return cmd
}

// unbegun gives an error of vswitch's own an exit code that commands don't have.
func unbegun(err error) error {
	var exit *rootless.ExitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return &rootless.ExitError{Code: 125, Text: err.Error()}
}

func (o *rootlessOptions) run(args []string) error {
	c, err := o.config(args)
	if err != nil {
		return err
	}
	// From here on signals are the command's, and go on to it.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	c.Signals = signals
	return rootless.Run(c)
}

func (o *rootlessOptions) config(args []string) (c rootless.Config, err error) {
	if !slices.Contains(confine.Modes, confine.Mode(o.confine)) {
		return c, fmt.Errorf("--confine %s: want one of %v", o.confine, confine.Modes)
	}
	if c.Self, err = os.Executable(); err != nil {
		return c, err
	}
	d := &c.Dataplane
	if d.Publish, err = o.publishing(); err != nil {
		return c, err
	}
	prefixes, err := parseList("cidr", "a network such as 10.0.2.0/24", o.cidr, netip.ParsePrefix)
	if err != nil {
		return c, err
	}
	d.Plan = plan.Plan{
		Interface: o.ifname, MTUBytes: o.mtu, Queues: o.workers, MAC: randomMAC(), HostLoopback: o.hostLoopback,
	}
	if d.Plan.Nets, err = plan.NetsOf(prefixes); err != nil {
		return c, fmt.Errorf("--cidr: %w", err)
	}
	if err := d.Plan.Check(); err != nil {
		return c, err
	}
	upstream, err := parseList("dns-upstream", "ADDR[:PORT]", o.upstream, parseResolver)
	if err != nil {
		return c, err
	}
	d.Resolvers, d.LowPortOffset = upstream, o.lowPorts
	c.Command, c.OneID = args, o.oneID
	if c.Setup, err = o.setup(); err != nil {
		return c, err
	}
	c.Setup.ResolvConf = resolvConf(d.Plan.Of(plan.DNS))
	c.Log = rootlessLog(o.verbose)
	for _, a := range absent(d.Publish) {
		c.Log.Warn("no interface of the host has this address; its ports open when one has", "addr", a)
	}
	c.DataplaneArgs = []string{"--confine", o.confine}
	if o.verbose {
		c.DataplaneArgs = append(c.DataplaneArgs, "--verbose")
	}
	return c, nil
}

// setup is what the command finds of the machine.
func (o *rootlessOptions) setup() (s inside.Setup, err error) {
	if err := copyup.Check(o.copyUp); err != nil {
		return s, fmt.Errorf("--copy-up %w", err)
	}
	s = inside.Setup{Engine: o.engine, CopyUp: o.copyUp}
	if s.Binds, err = parseList("bind", "SOURCE:DIR, both absolute paths", o.binds, inside.ParseBind); err != nil {
		return s, err
	}
	return s, nil
}

func (o *rootlessOptions) publishing() (p dataplane.Publish, err error) {
	if p, err = dataplane.ParsePublish(o.publish); err != nil {
		return p, fmt.Errorf("--publish %w", err)
	}
	if p.Only, err = dataplane.ParseRanges(o.only); err != nil {
		return p, fmt.Errorf("--publish-only %w", err)
	}
	if p.Except, err = dataplane.ParseRanges(o.except); err != nil {
		return p, fmt.Errorf("--publish-except %w", err)
	}
	p.At, err = parseList("publish-address", "an address of this host", o.publishAt, netip.ParseAddr)
	return p, err
}

// absent are the addresses to publish at that no interface of the host has.
func absent(p dataplane.Publish) []netip.Addr {
	at := slices.Clone(p.At)
	for _, port := range p.Ports {
		at = append(at, port.Host)
	}
	have, err := net.InterfaceAddrs()
	if err != nil {
		return nil // what can't be opened is said then
	}
	return slices.DeleteFunc(at, func(a netip.Addr) bool {
		return !a.IsValid() || a.IsUnspecified() || slices.ContainsFunc(have, func(h net.Addr) bool {
			p, err := netip.ParsePrefix(h.String())
			return err == nil && (p.Addr() == a || a.IsLoopback() && p.Contains(a))
		})
	})
}

func parseList[T any](flag, want string, values []string, parse func(string) (T, error)) ([]T, error) {
	var all []T
	for _, v := range values {
		one, err := parse(v)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: want %s", flag, v, want)
		}
		all = append(all, one)
	}
	return all, nil
}

// parseResolver reads an address, with a port if that is not 53.
func parseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

func randomMAC() frame.MAC {
	var seed [6]byte
	rand.Read(seed[:]) // never fails
	return frame.LocalMAC(seed)
}

// resolvConf is the host's, with other name servers.
func resolvConf(servers []netip.Addr) string {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return b.String()
	}
	for line := range strings.Lines(string(host)) {
		switch key, _, _ := strings.Cut(strings.TrimSpace(line), " "); key {
		case "search", "domain", "options":
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	return b.String()
}

func rootlessLog(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// newRootlessInside is the process that becomes the command.
func newRootlessInside() *cobra.Command {
	unmapped := false
	cmd := &cobra.Command{
		Use:    "inside [flags] -- COMMAND [ARG]...",
		Short:  "Set up a namespace and become a command (vswitch rootless run does this)",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if !unmapped {
				code, err := inside.Become(args)
				if err != nil {
					return err
				}
				return &rootless.ExitError{Code: code} // what there was to say has been said
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return inside.AwaitIDs(self, append([]string{"rootless", "inside", "--"}, args...))
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&unmapped, "unmapped", false, "ids are not mapped yet")
	return cmd
}

// newRootlessDataplane is the process that moves frames.
func newRootlessDataplane() *cobra.Command {
	var text, mode string
	verbose := false
	cmd := &cobra.Command{
		Use:    "dataplane",
		Short:  "Move the frames of a namespace (vswitch rootless run does this)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// A terminal's keys are for the command, which needs its network until it ends.
			signal.Ignore(syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTSTP)
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			var c dataplane.Config
			if err := json.Unmarshal([]byte(text), &c); err != nil {
				return fmt.Errorf("--config: %w", err)
			}
			parent, err := keeper.Connect()
			if err != nil {
				return err
			}
			if parent == nil {
				return fmt.Errorf("want a keeper: this is for vswitch rootless run")
			}
			defer parent.Close()
			c.Keeper, c.Log = parent, rootlessLog(verbose)
			lacks, err := confine.Apply(confine.Dataplane(), confine.Mode(mode))
			for _, l := range lacks {
				c.Log.Info("the dataplane is less confined than it could be", "err", l)
			}
			if err != nil {
				return err
			}
			return dataplane.Run(ctx, c)
		},
	}
	cmd.Flags().StringVar(&text, "config", "", "`JSON` of what to do")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "say what is opened and closed")
	addConfine(cmd, &mode)
	return cmd
}

func addConfine(cmd *cobra.Command, mode *string) {
	cmd.Flags().StringVar(mode, "confine", string(confine.On), "what the process that moves packets gives up: `MODE` on, off, or trap (docs/security.md)")
}
