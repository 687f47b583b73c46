package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Hello answers unmodified programs: HTTP requests and UDP datagrams, with one
// line that says who answers, whom it sees and on which port it was asked:
//
//	NAME CLIENT-ADDRESS PORT
type Hello struct {
	name string
	http []net.Listener
	udp  []*net.UDPConn
}

// ListenHello opens a server that calls itself name at each address, TCP and UDP.
func ListenHello(name string, addresses []netip.AddrPort) (*Hello, error) {
	h := &Hello{name: name}
	for _, a := range addresses {
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		if err != nil {
			h.close()
			return nil, err
		}
		h.http = append(h.http, tcp)
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			h.close()
			return nil, err
		}
		h.udp = append(h.udp, udp)
	}
	return h, nil
}

func (h *Hello) close() {
	for _, l := range h.http {
		l.Close()
	}
	for _, c := range h.udp {
		c.Close()
	}
}

// Serve answers until ctx ends, and waits for requests that are being answered.
func (h *Hello) Serve(ctx context.Context) error {
	server := &http.Server{Handler: http.HandlerFunc(h.answer)}
	errs := make(chan error)
	for _, l := range h.http {
		go func() { errs <- server.Serve(l) }()
	}
	for _, c := range h.udp {
		go func() { errs <- h.serveUDP(c) }()
	}
	stop := context.AfterFunc(ctx, func() {
		server.Close()
		h.close()
	})
	defer stop()
	var first error
	for range len(h.http) + len(h.udp) {
		if err := <-errs; first == nil && ctx.Err() == nil {
			first = err
			server.Close() // one that can't serve ends all
			h.close()
		}
	}
	return first
}

func (h *Hello) answer(w http.ResponseWriter, r *http.Request) {
	local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	at, err2 := netip.ParseAddrPort(local)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, h.line(client, at.Port()))
}

func (h *Hello) serveUDP(c *net.UDPConn) error {
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	buf := make([]byte, 64<<10)
	for {
		_, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		// An answer that can't be sent is a datagram lost; the client notices.
		c.WriteToUDPAddrPort([]byte(h.line(from, port)), from)
	}
}

func (h *Hello) line(client netip.AddrPort, port uint16) string {
	return fmt.Sprintf("%s %s %d", h.name, client.Addr().Unmap().WithZone(""), port)
}

func helloCommand() *cobra.Command {
	var name string
	var listen []string
	var linger time.Duration
	c := &cobra.Command{
		Use: "hello", Short: "Answer HTTP and UDP with name, client and port until interrupted", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var addresses []netip.AddrPort
			for _, l := range listen {
				a, err := listenAddress(l)
				if err != nil {
					return err
				}
				addresses = append(addresses, a)
			}
			h, err := ListenHello(name, addresses)
			if err != nil {
				return err
			}
			ctx, end := context.WithCancel(cmd.Context())
			defer end()
			asked, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			// A server that is asked to end goes on for a while: clients take their
			// time to hear that it is leaving.
			context.AfterFunc(asked, func() { time.AfterFunc(linger, end) })
			fmt.Fprintf(cmd.OutOrStdout(), "%s as %s on %s\n", ReadyLine, name, strings.Join(listen, ", "))
			return h.Serve(ctx)
		},
	}
	c.Flags().StringVar(&name, "name", os.Getenv("HOSTNAME"), "what to call itself")
	c.Flags().StringArrayVar(&listen, "listen", []string{":8080"}, "address `HOST:PORT` to listen on, TCP and UDP; may be repeated")
	c.Flags().DurationVar(&linger, "linger", 0, "how long to go on answering after it was asked to end")
	return c
}
