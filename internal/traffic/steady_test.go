package traffic

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

func TestAWitnessSeesWhatSteadyTrafficSent(t *testing.T) {
	w, err := ListenWitness(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	// One port number for both protocols is only likely to be free.
	port := w.tcp.Addr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
	w.tcp.Close()
	w.udp.Close()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	if w, err = ListenWitness(at); err != nil {
		t.Fatal(err)
	}
	watching, done := context.WithCancel(t.Context())
	reports := make(chan *Report, 1)
	go func() {
		r, err := w.Serve(watching)
		if err != nil {
			t.Error(err)
		}
		reports <- r
	}()
	sending, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	c := Client{Protocol: TCP, To: at}
	sent, err := c.Steady(sending, 2, 8e6, 1000)
	if err != nil {
		t.Fatal(err)
	}
	done()
	got := <-reports
	if s, g := sent.Steady, got.Steady; s.Connections != 2 || g.Connections != 2 || len(s.Broken)+len(g.Broken) > 0 ||
		s.Bytes == 0 || g.Bytes != s.Bytes || s.Datagrams == 0 || g.Datagrams != s.Datagrams || g.Duplicates != 0 {
		t.Errorf("sent %+v, witnessed %+v", s, g)
	}
}
