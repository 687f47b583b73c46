package traffic

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// boundPort is the port a socket of port 0 got.
func boundPort(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
}

func TestSinkCountsWhatAFloodDelivers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		size  int
		flows int
		uso   bool
	}{
		{"small packets of one flow", 64, 1, false},
		{"small packets of three flows", 64, 3, false},
		{"super-frames", 1400, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ListenSink(netip.MustParseAddrPort("127.0.0.1:0"), tt.uso)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			type result struct {
				r   *Report
				err error
			}
			to, done := boundPort(t, s.in.fd), make(chan result, 1)
			go func() {
				r, err := s.Serve(ctx)
				done <- result{r, err}
			}()
			sent, err := (&Client{Protocol: UDP, To: to, SizeBytes: tt.size}).Flood(t.Context(), tt.flows, tt.uso, 50*time.Millisecond)
			cancel()
			got := <-done
			if err != nil || got.err != nil {
				t.Fatal(err, got.err)
			}
			if b := got.r.Bulk; b.Bytes == 0 || b.Bytes > sent.Bulk.Bytes || b.Bytes%uint64(tt.size) != 0 || b.Elapsed <= 0 {
				t.Errorf("of %+v arrived %+v", sent.Bulk, b)
			}
		})
	}
}

func TestEveryConnectionIsAnswered(t *testing.T) {
	a, err := ListenAcceptor(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	to := boundPort(t, a.fd)
	go func() { done <- a.Serve(ctx) }()
	r, err := (&Client{Protocol: TCP, To: to}).Connect(t.Context(), 3, 50*time.Millisecond)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Connections; c.Count == 0 || c.Count != r.RTT.Count || c.PerSecond <= 0 {
		t.Errorf("%+v, %+v", c, r.RTT)
	}
}

func TestConnectionThatFailsIsAnError(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := closed.Addr().(*net.TCPAddr).AddrPort()
	closed.Close()
	if r, err := (&Client{Protocol: TCP, To: to}).Connect(t.Context(), 2, time.Second); err == nil {
		t.Errorf("no server: %+v", r)
	}

	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1)) // so that closing is no reset
			c.Close()
		}
	}()
	if r, err := (&Client{Protocol: TCP, To: mute.Addr().(*net.TCPAddr).AddrPort()}).Connect(t.Context(), 1, time.Second); err == nil {
		t.Errorf("a server that says nothing: %+v", r)
	}
}
