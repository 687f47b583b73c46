// Package health says over HTTP how this node is: whether it lives, whether it is
// ready, and its metrics.
//
//	/healthz   200: the dataplane's threads turn. Else a restart may help.
//	/readyz    200: a pod added now would be connected. Else 503 and the reason.
//	/metrics   for Prometheus
//
// It decides nothing of that itself: whoever starts it gives the answers. It serves
// nobody's secrets, but what it says is not for pods: their connections are refused.
package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// checkTimeout is less than the second that kubelets give a probe by default.
	checkTimeout = 900 * time.Millisecond
	// maxConnections are open at once; Prometheus and a kubelet need two.
	maxConnections = 16
	// headerTimeout, scrapeTimeout and idleTimeout keep a slow client from holding a
	// connection for ever. The second is for reading a request, with the body that none
	// needs, and for writing the answer.
	headerTimeout = 5 * time.Second
	scrapeTimeout = 30 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 16 << 10
	// bindRetry is how often an address that is taken is tried again. It may be
	// another daemon's that this one is about to replace.
	bindRetry = time.Second
)

// Config is what a server says. All but Refused is required.
type Config struct {
	Addrs []netip.AddrPort
	// Alive and Ready return nil for yes. They may take until their context ends, and
	// longer: their answer is then no.
	Alive, Ready func(context.Context) error
	Metrics      http.Handler
	// Refused reports whether a client's connections are closed at once. Nil: nobody's.
	Refused func(netip.Addr) bool
	Log     *slog.Logger
}

// Server serves until Close.
type Server struct {
	cfg    Config
	http   http.Server
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// Start serves at every address. One that can't be bound is tried again, and logged:
// a node that forwards is worth more than one that can say so.
func Start(cfg Config) *Server {
	s := newServer(cfg)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	for _, a := range cfg.Addrs {
		s.tasks.Go(func() { s.serve(ctx, a) })
	}
	return s
}

func newServer(cfg Config) *Server {
	s := &Server{cfg: cfg}
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", s.check("alive", cfg.Alive))
	mux.Handle("GET /readyz", s.check("ready", cfg.Ready))
	mux.Handle("GET /metrics", cfg.Metrics)
	s.http = http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: scrapeTimeout, WriteTimeout: scrapeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Close ends every connection and waits.
func (s *Server) Close() error {
	s.cancel()
	err := s.http.Close()
	s.tasks.Wait()
	return err
}

// serve binds one address and serves there.
func (s *Server) serve(ctx context.Context, at netip.AddrPort) {
	l := s.listen(ctx, at)
	if l == nil {
		return
	}
	s.cfg.Log.Info("health and metrics are served", "addr", l.Addr())
	l = netutil.LimitListener(&listener{l, s.cfg.Refused}, maxConnections)
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.cfg.Log.Error("health and metrics are no longer served", "addr", at, "err", err)
	}
}

// listen tries until it can; nil: ctx ended.
func (s *Server) listen(ctx context.Context, at netip.AddrPort) net.Listener {
	var lc net.ListenConfig
	for said := false; ; {
		l, err := lc.Listen(ctx, "tcp", at.String())
		if err == nil {
			return l
		}
		if !said && ctx.Err() == nil {
			s.cfg.Log.Error("health and metrics are not served yet: give --metrics-address another port if this one is somebody else's", "addr", at, "err", err)
			said = true
		}
		select {
		case <-time.After(bindRetry):
		case <-ctx.Done():
			return nil
		}
	}
}

// listener closes connections of those who may not ask.
type listener struct {
	net.Listener
	refused func(netip.Addr) bool
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.refused == nil {
			return c, err
		}
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err == nil && !l.refused(from.Addr().Unmap()) {
			return c, nil
		}
		c.Close()
	}
}

// check answers by what f says within checkTimeout. A check that hangs is one
// goroutine and no more: further questions are answered from it.
func (s *Server) check(what string, f func(context.Context) error) http.Handler {
	var mu sync.Mutex
	var running chan struct{} // closed when the check is done; nil: none runs
	var last error            // its answer
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if running == nil {
			done := make(chan struct{})
			running = done
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
				defer cancel()
				err := f(ctx)
				mu.Lock()
				defer mu.Unlock()
				last, running = err, nil
				close(done)
			}()
		}
		done := running
		mu.Unlock()
		err := error(nil)
		select {
		case <-done:
			mu.Lock()
			err = last
			mu.Unlock()
		case <-time.After(checkTimeout):
			err = fmt.Errorf("no answer within %v", checkTimeout)
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "not %s: %v\n", what, err)
			return
		}
		io.WriteString(w, what+"\n")
	})
}
