// Package node puts a node together: it opens every part in order, wires them to
// each other, and closes them in reverse.
//
// It decides little itself. What it does decide is order: a frame moves only when
// the routes that refuse are in place, a pod is added only when there is a CIDR to
// lease from, and forwarding starts from the last good state before the store has
// answered. Only cmd/vswitch may import it.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"vswitch/control"
	"vswitch/control/ipam"
	"vswitch/internal/attach"
	"vswitch/internal/config"
	"vswitch/internal/dns"
	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
	"vswitch/internal/metrics"
	"vswitch/internal/nodeapi"
	"vswitch/internal/resident"
	"vswitch/internal/upkeep"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/affinity"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// Options are what the program knows and the configuration doesn't.
type Options struct {
	Version string
	// Ready gets one line when the node forwards and takes pods. It begins with
	// "vswitch: ready".
	Ready io.Writer
	Log   *slog.Logger
	// Keeper holds what must outlive this process; nil: nobody does.
	Keeper Keeper
	// HandOver ends when the node is to stop and leave all that a successor can go on
	// with as it is. Nil: never.
	HandOver context.Context
}

// Keeper is the parent of a daemon that holds its descriptors (package keeper).
type Keeper interface {
	fdstore.Store
	// Begin waits until the process before this one is gone.
	Begin(context.Context) error
	// Ready says that this one forwards.
	Ready() error
	// Renew asks for a successor.
	Renew() error
	// Refused is why there is none.
	Refused() (reason string, err error)
	// Starts is how many processes ran before this one.
	Starts() uint64
	// Bind opens a socket that this process may not.
	Bind(network string, at netip.AddrPort) (fd int, err error)
	// BindTunnel opens a UDP socket with large buffers.
	BindTunnel(at netip.AddrPort) (fd int, err error)
	// OpenResolvers opens the file of the host's resolvers.
	OpenResolvers() (*os.File, error)
	// StartStore has the embedded store run.
	StartStore() error
}

// node is one being put together. Fields are set by the step named beside them
// and not changed afterwards.
type node struct {
	cfg config.Config
	opt Options
	log *slog.Logger

	// ctx ends when the node is to stop, with the cause if a part failed.
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup
	closed []func() error // in the order of opening

	state    *stateDir // openState
	bootID   string
	instance string

	fib       *fib.Table // openTables
	flows     *flow.Table
	affinity  *affinity.Memory
	tunnel    *vxlan.Tunnel // openTunnel
	facts     control.NodeFacts
	mtuBytes  int // of pods
	tunnelMTU int
	dataplane *dataplane
	ports     *countedPorts

	store      controlPlane            // openStore
	tell       func(control.Problem)   // nil: the log is enough
	resolvers  func() []netip.AddrPort // openController
	controller *control.Controller

	metrics     *metrics.Set    // openMetrics; nil: not asked for
	fds         fdstore.Store   // openKeeper
	attachments *attach.Manager // openAttachments
	hostPorts   *hostPorts
	tracer      *tracer // openAPI
	api         *nodeapi.Server
	descriptors *fdpass.Server
	upkeep      *upkeep.Watch

	claimMu sync.Mutex    // one writer of the claim's file at a time
	claim   control.Claim // holdClaim
	pool    *ipam.Pool    // startForwarding

	gateway atomic.Pointer[gateway.Gateway] // startForwarding
	names   atomic.Pointer[dns.Server]      // likewise; nil: pods' questions are not answered

	deaths chan death // of ports

	readyMu sync.Mutex
	serving bool // guarded by readyMu: AddPod would get as far as the pool
}

// Run runs a node until ctx ends, which is not an error, or until a part fails
// that the node can't do without.
func Run(ctx context.Context, cfg config.Config, opt Options) (err error) {
	n := &node{cfg: cfg, opt: opt, log: opt.Log, deaths: make(chan death, maxDeaths)}
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx)) // it drains before it ends
	defer func() { err = errors.Join(err, n.close()) }()
	defer context.AfterFunc(ctx, n.told(false))()
	if opt.HandOver != nil {
		defer context.AfterFunc(opt.HandOver, n.told(true))()
	}

	// Workers hold a processor each while frames come: the rest of the daemon must
	// not wait for them.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), cfg.Workers+2))

	resident.BoundGarbage()

	for _, step := range []func() error{
		n.openKeeper, n.openState, n.openTables, n.openTunnel, n.openController, n.openStore,
		n.openMetrics, n.openAttachments, n.openAPI, n.serveHealth, n.holdClaim, n.startForwarding, n.startControl, n.servePods,
	} {
		if err := step(); err != nil {
			if ctx.Err() != nil || n.handingOver() {
				return nil // told to stop while waiting for a part
			}
			return err
		}
	}
	fmt.Fprintln(opt.Ready, n.readyLine())
	if opt.Keeper != nil {
		if err := opt.Keeper.Ready(); err != nil {
			return err
		}
	}
	if err := resident.Trim(); err != nil {
		n.log.Warn("the daemon keeps memory that it doesn't need", "err", err)
	}
	<-n.ctx.Done()
	if ctx.Err() != nil || n.handingOver() {
		n.log.Info("stopping", "handover", n.handingOver())
		return nil
	}
	return context.Cause(n.ctx)
}

// onClose registers what undoes a step. It runs after those of later steps.
func (n *node) onClose(f func() error) { n.closed = append(n.closed, f) }

// close undoes every step that was done, the last first.
func (n *node) close() error {
	n.cancel(nil)
	var errs []error
	for i := len(n.closed) - 1; i >= 0; i-- {
		errs = append(errs, n.closed[i]())
	}
	return errors.Join(errs...)
}

// stopTasks ends what start started and waits for it.
func (n *node) stopTasks() error {
	n.cancel(nil)
	n.tasks.Wait()
	return nil
}

// start runs a task until it ends by itself or ctx does. Its error stops the node.
func (n *node) start(name string, task func(context.Context) error) {
	n.tasks.Go(func() {
		if err := task(n.ctx); err != nil && n.ctx.Err() == nil {
			n.log.Error("node stops", "part", name, "err", err)
			n.cancel(err)
		}
	})
}

// openKeeper waits for the turn of this process. All that is slow to load has been
// loaded by then, and nothing that two processes can't have at once is open yet.
func (n *node) openKeeper() error {
	if n.opt.Keeper == nil {
		memory := &fdstore.Memory{}
		n.fds = memory
		n.onClose(memory.Close)
		return nil
	}
	n.fds = n.opt.Keeper
	return n.opt.Keeper.Begin(n.ctx)
}

// handingOver reports whether a successor goes on with what this node has.
func (n *node) handingOver() bool { return n.opt.HandOver != nil && n.opt.HandOver.Err() != nil }

func (n *node) openState() error {
	dir, err := openStateDir(n.cfg.StateDir)
	if err != nil {
		return err
	}
	n.onClose(dir.Close)
	n.state = dir
	if n.bootID, err = ipam.BootID(); err != nil {
		return err
	}
	n.instance, err = dir.instance()
	return err
}

func (n *node) openTables() error {
	n.fib = fib.New()
	var err error
	if n.flows, err = openFlows(n.fds, fileOf(flowsName, n.cfg.RuntimeDir, n.instance), flow.Config{}, n.log); err != nil {
		return err
	}
	n.onClose(n.flows.Close)
	if n.affinity, err = openAffinity(n.fds, fileOf(affinityName, n.cfg.RuntimeDir, n.instance), n.log); err != nil {
		return err
	}
	n.onClose(n.affinity.Close)
	return nil
}

func (n *node) openTunnel() error {
	if n.cfg.UnderlayNote != "" {
		n.log.Info("underlay address chosen", "addr", join(n.cfg.Underlay), "by", n.cfg.UnderlayNote)
	}
	mac := vtepMAC(n.instance)
	mtu, err := vxlan.PodMTU(n.cfg.Underlay...)
	if err != nil {
		return fmt.Errorf("--underlay %s: %w; want an address of one of this host's interfaces that are up", join(n.cfg.Underlay), err)
	}
	n.tunnelMTU, n.mtuBytes = mtu, mtu
	if n.cfg.MTUBytes != 0 {
		n.mtuBytes = n.cfg.MTUBytes
		if n.mtuBytes > mtu {
			n.log.Warn("pods' MTU is more than the underlay carries: packets to other nodes will be answered with their MTU",
				"mtu", n.mtuBytes, "underlay", mtu)
		}
	}
	// Every TAP takes merged datagrams and CWR segments: where its kernel doesn't,
	// the queue does the work (package tap).
	config := vxlan.Config{
		Underlays: n.cfg.Underlay, Port: n.cfg.UDPPort, Sockets: n.cfg.Workers, VNI: vxlan.DefaultVNI,
		IngressVNI: vxlan.IngressVNI(vxlan.DefaultVNI),
		MAC:        mac, Offload: n.cfg.Offload, USO: true, TSOECN: true, PodMTUBytes: min(n.mtuBytes, n.tunnelMTU), Keeper: n.fds, Log: n.log,
	}
	if n.opt.Keeper != nil {
		config.Bind = n.opt.Keeper.BindTunnel
	}
	if n.tunnel, err = n.listenTunnel(config); err != nil {
		return err
	}
	n.onClose(n.tunnel.Close)
	if err := n.forgetTunnels(); err != nil {
		return err
	}
	n.facts = control.NodeFacts{
		Underlays: n.cfg.Underlay, UDPPorts: n.tunnel.Ports(), VNI: vxlan.DefaultVNI, VTEPMAC: mac,
		IngressVNI: vxlan.IngressVNI(vxlan.DefaultVNI), Zone: n.cfg.Zone,
	}
	n.dataplane = newDataplane(n.cfg.Node, n.cfg.Underlay, n.fib, n.flows, n.tunnel)
	n.dataplane.serviceCIDRs = n.cfg.ServiceCIDR
	n.ports = newCountedPorts()
	return nil
}

// readyLine is what a person, a script or a service manager waits for.
func (n *node) readyLine() string {
	var cidrs []string
	for _, p := range n.claim.PodCIDRs {
		cidrs = append(cidrs, p.String())
	}
	var at []string
	for _, a := range n.cfg.Underlay {
		at = append(at, netip.AddrPortFrom(a, n.facts.UDPPorts[0]).String())
	}
	return fmt.Sprintf("vswitch: ready: node %s, pods %s, vxlan %s vni %d, traffic between nodes is not encrypted",
		n.cfg.Node, strings.Join(cidrs, " "), strings.Join(at, " "), n.facts.VNI)
}

var (
	_ attach.Ports  = (*countedPorts)(nil)
	_ attach.Leases = (*ipam.Pool)(nil)
)
