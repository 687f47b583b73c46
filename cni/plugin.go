package cni

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"vswitch/control/api"
)

// callTimeout bounds one call to the daemon, which answers from memory and one
// file. Runtimes give a whole ADD 2 to 4 minutes.
const callTimeout = 15 * time.Second

const about = `vswitch-cni is a CNI plugin: a container runtime calls it (CNI_COMMAND and a network
configuration on stdin). By hand:

    vswitch-cni reattach [--socket PATH]    pass the queues of the pods there are to a restarted daemon`

// Main is the program: args are those after its name. It returns the exit code.
func Main(args []string) int {
	// A reader of stdout that went away is an error to roll back from, not a death.
	signal.Ignore(syscall.SIGPIPE)
	p := &plugin{}
	if len(args) == 0 {
		return p.serve()
	}
	return p.command(args, os.Stdout, os.Stderr)
}

// plugin is one invocation.
type plugin struct {
	// before is called ahead of each step of ADD and DEL; an error of it is the
	// step's. Tests fail or kill the plugin there. Nil: nothing.
	before func(step string) error
}

// serve carries out CNI_COMMAND.
func (p *plugin) serve() int {
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add:    p.add,
		Del:    p.del,
		Check:  p.check,
		GC:     p.gc,
		Status: p.status,
	}, version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), about)
	if err == nil {
		return 0
	}
	if printErr := err.Print(); printErr != nil {
		fmt.Fprintln(os.Stderr, "vswitch-cni:", err, "; and stdout:", printErr)
	}
	return 1
}

// command carries out what was called by hand.
func (p *plugin) command(args []string, stdout, stderr io.Writer) int {
	switch args[0] {
	case "reattach":
		return reattach(args[1:], stdout, stderr)
	case "help", "-h", "-help", "--help":
		fmt.Fprintln(stdout, about)
		return 0
	}
	fmt.Fprintf(stderr, "vswitch-cni: unknown command %q\n%s\n", args[0], about)
	return 2
}

// call makes one call of the daemon, within callTimeout.
func call[Request, Reply any](socket string, method func(api.Client, context.Context, *Request) (*Reply, error), request *Request) (*Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return method(api.Client{Socket: socket}, ctx, request)
}

// step is one thing ADD does. What it leaves when do fails is do's own business;
// undo is for when a later step fails, and may be nil.
type step struct {
	name string
	do   func() error
	undo func() error
}

// run does the steps in order. When one fails it undoes those before it,
// last first, all of them whatever happens, and returns the failure. What could
// not be undone goes into the error's details, since the runtime's DEL comes next.
func (p *plugin) run(steps []step) error {
	for i, s := range steps {
		err := p.pass(s.name)
		if err == nil {
			err = s.do()
		}
		if err == nil {
			continue
		}
		failure := asError(s.name, err)
		for _, done := range backwards(steps[:i]) {
			if done.undo == nil {
				continue
			}
			if err := done.undo(); err != nil {
				failure = withDetail(failure, fmt.Sprintf("undo %s: %v", done.name, err))
			}
		}
		return failure
	}
	return nil
}

func (p *plugin) pass(step string) error {
	if p.before == nil {
		return nil
	}
	return p.before(step)
}

func backwards(steps []step) []step {
	r := make([]step, len(steps))
	for i, s := range steps {
		r[len(steps)-1-i] = s
	}
	return r
}

// asError keeps an error that has a code, and gives any other one 999.
func asError(step string, err error) *types.Error {
	if e, ok := err.(*types.Error); ok {
		return e
	}
	return types.NewError(types.ErrInternal, step+": "+err.Error(), "")
}

func withDetail(e *types.Error, detail string) *types.Error {
	if e.Details != "" {
		detail = e.Details + "; " + detail
	}
	return types.NewError(e.Code, e.Msg, detail)
}
