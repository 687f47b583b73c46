// Package attend does on a node what its daemon, which has no privilege, can't: it
// gives a daemon that was started anew the queues of the pods there are, connects
// the host's own network, and installs the CNI plugin once pods can be added. And
// it does so again whenever one of these is undone.
//
// It is no part of the daemon and forwards nothing: while it is away, or has never
// run, what was done stays done. One goroutine, the caller's.
package attend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"vswitch/control/api"
	"vswitch/internal/cniinstall"
	"vswitch/internal/hostnet"
	"vswitch/internal/netif"
	"vswitch/internal/resident"
)

// interval is how often a round is made. Pods stand still between a daemon's start
// and the next round, if the one before it took their queues along.
const interval = time.Second

// callTimeout bounds what is asked of the daemon in a round.
const callTimeout = 15 * time.Second

// Config says what is to be done.
type Config struct {
	Socket  string             // of the daemon, absolute
	Install *cniinstall.Config // nil: no plugin
	Host    *hostnet.Config    // nil: the host is not attached
	Log     *slog.Logger
}

// attendant remembers what it did, to do and to say nothing twice.
type attendant struct {
	Config
	installed cniinstall.Result
	said      map[string]string // by what is done: the last failure logged
}

// Run makes rounds until ctx ends.
func Run(ctx context.Context, c Config) {
	a := newAttendant(c)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for trimmed := false; ; {
		err := a.round(ctx)
		a.say("node", err)
		if err == nil && !trimmed { // for long nothing will be to do
			trimmed = true
			if err := resident.Trim(); err != nil {
				a.Log.Warn("memory is kept that isn't needed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Once makes rounds until one has done everything, or ctx ends; the error is then
// what the last one failed for.
func Once(ctx context.Context, c Config) error {
	a := newAttendant(c)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := a.round(context.WithoutCancel(ctx))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func newAttendant(c Config) *attendant { return &attendant{Config: c, said: map[string]string{}} }

// round does what is not done. Pods that exist come before new ones: their queues
// are passed on even by a node that takes no others.
func (a *attendant) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := api.Client{Socket: a.Socket}
	failed := a.reattach(ctx, client)
	s, err := client.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return errors.Join(failed, err)
	}
	if !s.Ready {
		return errors.Join(failed, errors.New("the daemon takes no pods: "+s.Reason))
	}
	return errors.Join(failed, a.attachHost(ctx), a.install())
}

// reattach passes on the queues that the daemon lacks. A namespace that is gone, with
// the pod's deletion on its way, is a failure like another: it keeps nobody else from
// having theirs.
func (a *attendant) reattach(ctx context.Context, client api.Client) error {
	reply, err := client.ListAttachments(ctx, &api.ListAttachmentsRequest{DetachedOnly: true})
	if err != nil {
		return err
	}
	detached := map[string]bool{}
	for _, at := range reply.Attachments {
		pod := at.Pod.Namespace + "/" + at.Pod.Name
		detached[pod] = true
		err := netif.Reattach(a.Socket, &at)
		if err == nil {
			a.Log.Info("pod's queues passed to the daemon", "pod", pod)
		}
		a.say(pod, err)
	}
	for what := range a.said {
		if !detached[what] && what != "node" {
			delete(a.said, what)
		}
	}
	return nil
}

func (a *attendant) attachHost(ctx context.Context) error {
	if a.Host == nil {
		return nil
	}
	h, err := hostnet.Attach(ctx, *a.Host)
	if err != nil {
		return fmt.Errorf("attach the host: %w", err)
	}
	if !h.Existed {
		a.Log.Info("the host's network is attached", "interface", h.Name)
	}
	return nil
}

func (a *attendant) install() error {
	if a.Install == nil || a.installed.Intact() {
		return nil
	}
	r, err := cniinstall.Install(*a.Install)
	if err != nil {
		return fmt.Errorf("install the plugin: %w", err)
	}
	for _, path := range r.Changed {
		a.Log.Info("installed", "path", path)
	}
	for _, path := range r.Ahead {
		a.Log.Warn("another network configuration comes first by name: runtimes take it until it is removed", "path", path)
	}
	a.installed = r
	return nil
}

// say logs a failure once, and that it is over.
func (a *attendant) say(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if a.said[what] == text {
		return
	}
	if err != nil {
		a.Log.Warn("not done yet; trying on", "what", what, "err", err)
	} else {
		a.Log.Info("done", "what", what)
	}
	a.said[what] = text
}
