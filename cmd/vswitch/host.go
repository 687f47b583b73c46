package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vswitch/internal/hostnet"
)

func newHost() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Connect the host's own network to pods and services",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newHostAttach(), newHostDetach())
	return cmd
}

// hostOptions are the flags of both commands.
type hostOptions struct {
	daemon
	hostnet.Config
}

func (o *hostOptions) addFlags(cmd *cobra.Command) {
	o.daemon.addFlag(cmd)
	cmd.Flags().StringVar(&o.Netns, "netns", "", "`PATH` of the network namespace; the machine's own if not given")
	cmd.Flags().StringVar(&o.Name, "name", hostnet.DefaultName, "`NAME` of the interface")
}

// config is complete once the flags are read.
func (o *hostOptions) config() (hostnet.Config, error) {
	var err error
	c := o.Config
	c.Socket, err = o.path()
	return c, err
}

func newHostAttach() *cobra.Command {
	o := &hostOptions{}
	cmd := &cobra.Command{
		Use:   "attach",
		Short: "Make an interface by which the host's processes reach pods and services",
		Long: `Make an interface in the host's network namespace, or another that has a network
of its own, by which its processes reach pods and services on every node: a kubelet's
probes, host-network pods, or a person with curl. Pods reach the host by its address.

It gets an address of the node's pod range and routes to the ranges of pods, services and load
balancers; nothing else changes. Running it again repairs what is missing, after a
restart of the daemon too (vswitch-cni reattach does that as well), and otherwise does
nothing. It needs CAP_NET_ADMIN in the namespace.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return err
			}
			a, err := hostnet.Attach(cmd.Context(), c)
			if err != nil {
				return o.explain(err)
			}
			what := "attached"
			switch {
			case a.Existed:
				what = "was attached already"
			case a.Restored:
				what = "attached again"
			case a.Repaired:
				what = "repaired"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", a.Name, what, joinAddrs(a.Addrs))
			return nil
		},
	}
	o.addFlags(cmd)
	return cmd
}

func newHostDetach() *cobra.Command {
	o := &hostOptions{}
	cmd := &cobra.Command{
		Use:   "detach",
		Short: "Remove what host attach made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return err
			}
			if err := hostnet.Detach(cmd.Context(), c); err != nil {
				return o.explain(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s detached\n", c.Name)
			return nil
		},
	}
	o.addFlags(cmd)
	return cmd
}

// explain gives the errors of finding no daemon and of lacking privilege their reason.
func (o *hostOptions) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT) && strings.HasPrefix(err.Error(), "daemon"), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("--socket %s: no daemon listens there; start vswitch run, or give the --socket that it was given", o.daemon.socket)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w; want CAP_NET_ADMIN in the namespace, and to be root or the user the daemon runs as", err)
	}
	return plain(err)
}

func joinAddrs(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
