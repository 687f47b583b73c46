package health

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }
func (p pipes) Close() error   { return nil }
func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, http.ErrServerClosed
}

func TestASlowClientDoesNotHoldAConnection(t *testing.T) {
	const request = "GET /healthz HTTP/1.1\r\nHost: node\r\n"
	for _, tt := range []struct {
		name, sends string
		within      time.Duration
	}{
		{"one that says nothing", "", headerTimeout},
		{"one that stops within its headers", request, headerTimeout},
		{"one whose body never comes", request + "Content-Length: 10\r\n\r\n", scrapeTimeout},
		{"one that asks no more", request + "\r\n", idleTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				alive := func(context.Context) error { return nil }
				s := newServer(Config{Alive: alive, Ready: alive, Metrics: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)})
				client, server := net.Pipe()
				at := make(pipes, 1)
				at <- server
				go s.http.Serve(at)
				began := time.Now()
				if _, err := io.WriteString(client, tt.sends); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, client); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > tt.within+time.Second {
					t.Errorf("held for %v, want %v at most", took, tt.within)
				}
				close(at)
			})
		})
	}
}
