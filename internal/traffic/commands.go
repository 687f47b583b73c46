package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// ReadyLine begins the line a `serve` process prints once it listens.
const ReadyLine = "serving"

// Commands are `serve` and its like, and `load`, for a binary that plays either side.
func Commands() []*cobra.Command {
	return []*cobra.Command{serveCommand(), sinkCommand(), acceptCommand(), witnessCommand(), helloCommand(), loadCommand()}
}

func sinkCommand() *cobra.Command {
	var gro bool
	c := receiver("sink", "Count datagrams until interrupted and print JSON", "UDP", func(at netip.AddrPort) (serveFunc, error) {
		s, err := ListenSink(at, gro)
		if err != nil {
			return nil, err
		}
		return s.Serve, nil
	})
	c.Flags().BoolVar(&gro, "gro", false, "take datagrams of one flow joined (UDP_GRO)")
	return c
}

func acceptCommand() *cobra.Command {
	return receiver("accept", "Accept connections, answer a byte and close, until interrupted", "TCP", func(at netip.AddrPort) (serveFunc, error) {
		a, err := ListenAcceptor(at)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (*Report, error) { return nil, a.Serve(ctx) }, nil
	})
}

func witnessCommand() *cobra.Command {
	return receiver("witness", "Receive steady traffic until interrupted and print what became of it as JSON", "TCP and UDP", func(at netip.AddrPort) (serveFunc, error) {
		w, err := ListenWitness(at)
		if err != nil {
			return nil, err
		}
		return w.Serve, nil
	})
}

// serveFunc receives until ctx ends; its report is printed, if there is one.
type serveFunc func(ctx context.Context) (*Report, error)

// receiver is a command that listens, says so, and serves until interrupted.
func receiver(use, short, protocols string, open func(netip.AddrPort) (serveFunc, error)) *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			at, err := listenAddress(listen)
			if err != nil {
				return err
			}
			serve, err := open(at)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s on %s\n", ReadyLine, at)
			r, err := serve(ctx)
			if err != nil || r == nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	c.Flags().StringVar(&listen, "listen", ":7000", "address `HOST:PORT` to listen on, "+protocols)
	return c
}

// listenAddress reads an address; without a host it is every address, of both families.
func listenAddress(s string) (netip.AddrPort, error) {
	if strings.HasPrefix(s, ":") {
		s = "[::]" + s
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("--listen: %w", err)
	}
	return a, nil
}

func serveCommand() *cobra.Command {
	var name string
	var listen []string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Answer measurements on TCP and UDP until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			var servers []*Server
			for _, address := range listen {
				s, err := Listen(name, address)
				if err != nil {
					return fmt.Errorf("--listen %s: %w", address, err)
				}
				servers = append(servers, s)
			}
			errs := make(chan error)
			for _, s := range servers {
				go func() { errs <- s.Serve(ctx) }()
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s as %s on %s\n", ReadyLine, name, strings.Join(listen, ", "))
			for range servers {
				if err := <-errs; err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "server", "what to call itself when asked who it is")
	c.Flags().StringArrayVar(&listen, "listen", []string{":7000"}, "address `HOST:PORT` to listen on, TCP and UDP; may be repeated")
	return c
}

// resolveTimeout bounds the look-up of a name.
const resolveTimeout = 10 * time.Second

// resolve replaces the name in HOST:PORT by its address, which it asks server for.
func resolve(ctx context.Context, server, family, to string) (string, error) {
	name, port, err := net.SplitHostPort(to)
	if err != nil {
		return "", err
	}
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server)
	}}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, family, name+".") // as it stands, without a search list
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(addrs[0].Unmap().String(), port), nil
}

func loadCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "load",
		Short: "Measure against a `serve` process and print JSON",
	}
	var protocol, to, resolver, family string
	var client Client
	f := c.PersistentFlags()
	f.StringVar(&protocol, "protocol", "tcp", "tcp, udp, or, for round trips, ping")
	f.StringVar(&to, "to", "", "address `HOST:PORT` of the server; a bare address for ping")
	f.IntVar(&client.SizeBytes, "size", 0, "`bytes` of a message; 0: what suits the measurement")
	f.DurationVar(&client.FirstContact, "first-contact", 0, "how long to try to get the first answer")
	f.StringVar(&resolver, "resolver", "", "address `HOST:PORT` of a DNS server to ask where --to has a name")
	f.StringVar(&family, "family", "ip4", "ip4 or ip6: which of a name's addresses to take")
	c.MarkPersistentFlagRequired("to")

	measure := func(use, short string, f func(context.Context) (*Report, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				client.Protocol = Protocol(protocol)
				var err error
				if resolver != "" {
					if to, err = resolve(cmd.Context(), resolver, family, to); err != nil {
						return fmt.Errorf("--to: %w", err)
					}
				}
				if client.Protocol == Ping {
					var a netip.Addr
					if a, err = netip.ParseAddr(to); err == nil {
						client.To = netip.AddrPortFrom(a, 0)
					}
				} else {
					client.To, err = netip.ParseAddrPort(to)
				}
				if err != nil {
					return fmt.Errorf("--to: %w", err)
				}
				r, err := f(cmd.Context())
				if err != nil {
					return fmt.Errorf("%s %s to %s: %w", protocol, use, to, err)
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
			},
		}
	}
	var count, connections int
	var rttFor, bulkFor time.Duration
	rtt := measure("rtt", "Round trips of small messages, one at a time", func(ctx context.Context) (*Report, error) {
		return client.RTT(ctx, count, rttFor)
	})
	rtt.Flags().IntVar(&count, "count", 200, "messages to send at least")
	rtt.Flags().DurationVar(&rttFor, "duration", 0, "time to go on at least")
	bulk := measure("bulk", "Send as fast as possible", func(ctx context.Context) (*Report, error) {
		return client.Bulk(ctx, bulkFor)
	})
	bulk.Flags().DurationVar(&bulkFor, "duration", time.Second, "time to send")
	who := measure("who", "Who answers new connections, and whom it sees", func(ctx context.Context) (*Report, error) {
		return client.Who(ctx, connections)
	})
	who.Flags().IntVar(&connections, "count", 20, "connections to make")
	var flows, clients int
	var uso bool
	var floodFor, connectFor time.Duration
	flood := measure("flood", "Send datagrams to a `sink` as fast as possible", func(ctx context.Context) (*Report, error) {
		return client.Flood(ctx, flows, uso, floodFor)
	})
	flood.Flags().IntVar(&flows, "flows", 1, "source ports to send from, in turn")
	flood.Flags().BoolVar(&uso, "uso", false, "write up to 64 KiB at once, cut by the kernel (UDP_SEGMENT)")
	flood.Flags().DurationVar(&floodFor, "duration", time.Second, "time to send")
	connect := measure("connections", "Make connections to an `accept`, one after another", func(ctx context.Context) (*Report, error) {
		return client.Connect(ctx, clients, connectFor)
	})
	connect.Flags().IntVar(&clients, "clients", 8, "connections under way at once")
	connect.Flags().DurationVar(&connectFor, "duration", time.Second, "time to go on")
	var steadyConnections int
	var bitRate, packetRate float64
	steady := measure("steady", "Send to a `witness` at a steady rate, TCP and UDP, until interrupted", func(ctx context.Context) (*Report, error) {
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return client.Steady(ctx, steadyConnections, bitRate, packetRate)
	})
	steady.Flags().IntVar(&steadyConnections, "connections", 2, "TCP connections")
	steady.Flags().Float64Var(&bitRate, "bits", 1e9, "bits per second, over all connections")
	steady.Flags().Float64Var(&packetRate, "packets", 10000, "datagrams per second")
	c.AddCommand(rtt, bulk, who, flood, connect, steady)
	return c
}
