package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server on loopback until the test ends.
func start(t *testing.T, name, address string) netip.AddrPort {
	t.Helper()
	s, err := Listen(name, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s.Addr()
}

func TestRoundTripsAndBulkOverLoopback(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		to := start(t, "one", address)
		for _, protocol := range []Protocol{TCP, UDP} {
			t.Run(string(protocol)+" "+address, func(t *testing.T) {
				c := &Client{Protocol: protocol, To: to}
				r, err := c.RTT(t.Context(), 50, 0)
				if err != nil {
					t.Fatal(err)
				}
				if r.RTT.Count != 50 || r.RTT.Lost != 0 || r.RTT.P50 <= 0 || r.RTT.P50 > r.RTT.P99 {
					t.Errorf("round trips %+v", r.RTT)
				}
				r, err = c.Bulk(t.Context(), 50*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				if r.Bulk.Bytes == 0 || r.Bulk.BitsPerSecond <= 0 || r.Bulk.Received > r.Bulk.Sent {
					t.Errorf("bulk %+v", r.Bulk)
				}
				r, err = c.Who(t.Context(), 5)
				if err != nil {
					t.Fatal(err)
				}
				if want := (Answer{Server: "one", Client: to.Addr(), Count: 5}); len(r.Answers) != 1 || r.Answers[0] != want {
					t.Errorf("who %+v, want %+v", r.Answers, want)
				}
			})
		}
	}
}

func TestPingAnswersOnLoopback(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		r, err := (&Client{Protocol: Ping, To: netip.AddrPortFrom(netip.MustParseAddr(a), 0)}).RTT(t.Context(), 10, 0)
		if err != nil && strings.Contains(err.Error(), "ping_group_range") {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.RTT.Count != 10 || r.RTT.Lost != 0 {
			t.Errorf("ping %s: %+v", a, r.RTT)
		}
	}
}

func TestServerOnEveryAddressAnswersBothFamilies(t *testing.T) {
	to := start(t, "any", ":0")
	for _, a := range []string{"127.0.0.1", "::1"} {
		for _, protocol := range []Protocol{TCP, UDP} {
			c := &Client{Protocol: protocol, To: netip.AddrPortFrom(netip.MustParseAddr(a), to.Port())}
			r, err := c.Who(t.Context(), 1)
			if err != nil || r.Answers[0].Client.String() != a {
				t.Errorf("%s over %s: %+v, %v", a, protocol, r, err)
			}
		}
	}
}

func TestNoServerIsAnErrorNotAZero(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	for _, protocol := range []Protocol{TCP, UDP} {
		c := &Client{Protocol: protocol, To: to}
		if _, err := c.RTT(t.Context(), 1, 0); err == nil {
			t.Errorf("%s round trips: no error", protocol)
		}
		if _, err := c.Bulk(t.Context(), time.Millisecond); err == nil {
			t.Errorf("%s bulk: no error", protocol)
		}
		if _, err := c.Who(t.Context(), 1); err == nil {
			t.Errorf("%s who: no error", protocol)
		}
	}
}

func TestFirstContactWaitsForTheServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	got := make(chan error, 1)
	go func() {
		_, err := (&Client{Protocol: TCP, To: to, FirstContact: 10 * time.Second}).RTT(t.Context(), 1, 0)
		got <- err
	}()
	start(t, "late", to.String())
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestDamagedBulkIsAnError(t *testing.T) {
	to := start(t, "one", "127.0.0.1:0")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		in, err := ln.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		defer out.Close()
		buf := make([]byte, 64<<10)
		for first := true; ; {
			n, err := in.Read(buf)
			if n > 100 && first {
				buf[50] ^= 1
				first = false
			}
			out.Write(buf[:n])
			if err != nil {
				out.(*net.TCPConn).CloseWrite()
				break
			}
		}
		n, _ := out.Read(buf)
		in.Write(buf[:n])
	}()
	_, err = (&Client{Protocol: TCP, To: ln.Addr().(*net.TCPAddr).AddrPort()}).Bulk(t.Context(), 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "CRC") {
		t.Errorf("a flipped bit went unnoticed: %v", err)
	}
	<-done
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	ten := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for p, want := range map[float64]time.Duration{1: 1, 10: 1, 50: 5, 90: 9, 99: 10, 100: 10} {
		if got := percentile(ten, p); got != want {
			t.Errorf("p%v of 1..10 is %d, want %d", p, got, want)
		}
	}
	if _, err := newRTT(nil, 3); err == nil {
		t.Error("no sample at all: no error")
	}
}

func TestLoadCommandPrintsJSON(t *testing.T) {
	to := start(t, "one", "127.0.0.1:0")
	c := loadCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetArgs([]string{"rtt", "--protocol", "udp", "--to", to.String(), "--count", "7"})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.RTT.Count != 7 {
		t.Errorf("printed %s: %v", out.String(), err)
	}
}
