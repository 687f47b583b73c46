package traffic

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

func TestHello(t *testing.T) {
	addresses := []netip.AddrPort{freePort(t, "127.0.0.1"), freePort(t, "::1")}
	h, err := ListenHello("me", addresses)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx) }()
	for _, a := range addresses {
		want := fmt.Sprintf("me %s %d", a.Addr(), a.Port())
		r, err := http.Get("http://" + a.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || string(got) != want+"\n" {
			t.Errorf("HTTP: %q, %v, want %q", got, err, want)
		}
		c, err := net.Dial("udp", a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write(nil)
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("UDP: %q, %v, want %q", buf[:n], err, want)
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("told to end: %v", err)
	}
}

// freePort is a port that nobody listens at just now, by TCP and UDP alike.
func freePort(t *testing.T, host string) netip.AddrPort {
	t.Helper()
	s, err := Listen("", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	return s.Addr()
}
