package health

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asked is one answer of a server.
type asked struct {
	code int
	body string
}

func get(t *testing.T, at netip.AddrPort, path string) (asked, error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := client.Get("http://" + at.String() + path)
	if err != nil {
		return asked{}, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return asked{r.StatusCode, string(body)}, err
}

// freePort is one that nobody has now.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func start(t *testing.T, cfg Config) netip.AddrPort {
	t.Helper()
	cfg.Addrs, cfg.Log = []netip.AddrPort{freePort(t)}, slog.New(slog.DiscardHandler)
	cfg.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "vswitch_up 1\n") })
	for _, f := range []*func(context.Context) error{&cfg.Alive, &cfg.Ready} {
		if *f == nil {
			*f = func(context.Context) error { return nil }
		}
	}
	s := Start(cfg)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	waitListening(t, cfg.Addrs[0])
	return cfg.Addrs[0]
}

func waitListening(t *testing.T, at netip.AddrPort) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

func TestAnswers(t *testing.T) {
	var reason atomic.Pointer[string]
	at := start(t, Config{Ready: func(context.Context) error {
		if r := reason.Load(); r != nil {
			return errors.New(*r)
		}
		return nil
	}})
	full := "every address is leased"
	for _, tt := range []struct {
		name, path string
		reason     *string
		want       asked
	}{
		{"alive", "/healthz", nil, asked{200, "alive\n"}},
		{"ready", "/readyz", nil, asked{200, "ready\n"}},
		{"not ready, and why", "/readyz", &full, asked{503, "not ready: every address is leased\n"}},
		{"alive all the same", "/healthz", &full, asked{200, "alive\n"}},
		{"ready again", "/readyz", nil, asked{200, "ready\n"}},
		{"metrics", "/metrics", nil, asked{200, "vswitch_up 1\n"}},
		{"nothing else", "/debug/pprof/", nil, asked{404, "404 page not found\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reason.Store(tt.reason)
			if got, err := get(t, at, tt.path); err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
	if r, err := http.Post("http://"+at.String()+"/healthz", "", nil); err != nil || r.StatusCode != 405 {
		t.Errorf("POST: %v %v", r, err)
	} else {
		r.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestACheckThatHangsIsOneAndSaysNo(t *testing.T) {
	var running atomic.Int32
	release := make(chan struct{})
	at := start(t, Config{Alive: func(context.Context) error {
		running.Add(1)
		<-release
		return nil
	}})
	for range 2 {
		got, err := get(t, at, "/healthz")
		if err != nil || got.code != 503 || !strings.Contains(got.body, "no answer within") {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if n := running.Load(); n != 1 {
		t.Errorf("%d checks run", n)
	}
	close(release)
	for deadline := time.Now().Add(10 * time.Second); ; {
		if got, err := get(t, at, "/healthz"); err == nil && got.code == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not alive again")
		}
	}
}

func TestRefusedClientsGetNothing(t *testing.T) {
	var refuse atomic.Bool
	at := start(t, Config{Refused: func(a netip.Addr) bool { return refuse.Load() && a == netip.MustParseAddr("127.0.0.1") }})
	if _, err := get(t, at, "/metrics"); err != nil {
		t.Fatal(err)
	}
	refuse.Store(true)
	if got, err := get(t, at, "/metrics"); err == nil {
		t.Errorf("got %+v", got)
	}
}

func TestAnAddressThatIsTakenIsServedOnceItIsFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	alive := func(context.Context) error { return nil }
	s := Start(Config{Addrs: []netip.AddrPort{at}, Alive: alive, Ready: alive, Metrics: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)})
	l.Close()
	waitListening(t, at)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t)
}
