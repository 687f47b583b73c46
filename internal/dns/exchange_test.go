package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver serves handler on one port of loopback, UDP and TCP.
func resolver(t *testing.T, handler dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: p, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			s.Shutdown()
			<-ended
		})
	}
	return p.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestSocketsBringTheAnswerToTheQuestion(t *testing.T) {
	at := resolver(t, func(w dns.ResponseWriter, q *dns.Msg) {
		// First what others may have sent: another identifier, another name, rubbish.
		other := new(dns.Msg).SetReply(q)
		other.Id++
		w.WriteMsg(other)
		other = new(dns.Msg).SetReply(q)
		other.Question[0].Name = "evil.example."
		w.WriteMsg(other)
		if w.RemoteAddr().Network() == "udp" {
			w.Write([]byte{1, 2, 3})
		}
		r := new(dns.Msg).SetReply(q)
		r.Answer = records(q.Question[0].Name + " 30 IN A 192.0.2.80")
		w.WriteMsg(r)
	})
	for _, tcp := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		r, err := Sockets{}.Exchange(ctx, at, message(www), tcp)
		cancel()
		if err != nil || len(r.Answer) != 1 {
			t.Errorf("TCP %v: got %v, %v", tcp, r, err)
		}
	}
}

func TestSocketsEndWithTheContext(t *testing.T) {
	asked := make(chan struct{}, 2)
	at := resolver(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	for _, tcp := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := Sockets{}.Exchange(ctx, at, message(www), tcp)
			ended <- err
		}()
		<-asked
		cancel()
		if err := <-ended; err == nil {
			t.Errorf("TCP %v: an answer from nowhere", tcp)
		}
	}
}

func TestAClosedPortIsNoticedAtOnce(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := p.LocalAddr().(*net.UDPAddr).AddrPort()
	p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := (Sockets{}).Exchange(ctx, at, message(www), false); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want connection refused", err)
	}
}
