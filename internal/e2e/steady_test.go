package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
	"vswitch/internal/traffic"
)

// steady is 1 Gb/s over two TCP connections and 10,000 datagrams a second from one
// process to another, who both say in the end what became of it.
type steady struct {
	t               *testing.T
	name            string
	client, witness *lab.Process
	begun           time.Time
}

const (
	steadyPort        = 7000
	steadyConnections = 2
)

// newSteady begins, from a pod to another, which it knows by the address to. More
// args change the rates.
func newSteady(c *cluster, name string, from, server *lab.Pod, to netip.AddrPort, args ...string) *steady {
	t := c.t
	t.Helper()
	program := filepath.Join(labtest.BinDir(t), "vswitch-bench")
	at := netip.AddrPortFrom(netip.IPv6Unspecified(), steadyPort)
	witness, err := server.Start(lab.Command{Name: "witness", Path: program, Args: []string{"witness", "--listen", at.String()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := witness.WaitLog(t.Context(), regexp.MustCompile("^"+traffic.ReadyLine)); err != nil {
		t.Fatal(err)
	}
	c.eventually(name+" answers", func() error {
		conn, err := dial(from.Namespace, "tcp", netip.AddrPort{}, to)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	client, err := from.Start(lab.Command{Name: "steady", Path: program, Args: append([]string{"load", "steady", "--to", to.String()}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	c.eventually(name+" is connected", func() error {
		// proc_net(5): the sockets of the pod; state 01 is established.
		sockets, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", client.Pid()))
		if n := strings.Count(string(sockets), fmt.Sprintf(":%04X 01 ", steadyPort)); err != nil || n < steadyConnections {
			return fmt.Errorf("%d connections, %v", n, err)
		}
		return nil
	})
	return &steady{t, name, client, witness, time.Now()}
}

// end stops both sides. Every connection must have lived; it returns how many
// datagrams were lost, and the longest silence.
func (s *steady) end() (lost int64, silence time.Duration) {
	s.t.Helper()
	sent, got := s.report(s.client), s.report(s.witness)
	if sent.Connections == 0 || sent.Bytes == 0 || sent.Datagrams == 0 {
		s.t.Fatalf("%s: no traffic: %+v", s.name, sent)
	}
	if len(sent.Broken) > 0 || len(got.Broken) > 0 || got.Bytes != sent.Bytes {
		s.t.Errorf("%s: connections broken: %q and %q; %d of %d bytes", s.name, sent.Broken, got.Broken, got.Bytes, sent.Bytes)
	}
	for _, g := range got.Gaps {
		silence = max(silence, g.Length)
	}
	s.t.Logf("%s: %d datagrams sent, %d received; longest silence %v", s.name, sent.Datagrams, got.Datagrams, silence)
	return int64(sent.Datagrams) - int64(got.Datagrams), silence
}

// queueHolds is how long a TAP's queue, 1,000 frames, holds this traffic. A machine that
// is busy with other things makes a restart longer than that, which is not what these
// tests are about: the benchmark measures it.
const queueHolds = 80 * time.Millisecond

// losesNothing ends the traffic, of which nothing may be lost.
func (s *steady) losesNothing() {
	s.t.Helper()
	if lost, silence := s.end(); lost != 0 && silence < queueHolds {
		s.t.Errorf("%s: %d datagrams lost, with no silence longer than %v", s.name, lost, silence)
	}
}

func (s *steady) report(p *lab.Process) *traffic.Steady {
	s.t.Helper()
	err := p.Stop()
	if err == nil {
		var r *traffic.Steady
		if r, err = traffic.SteadyIn(p.Log()); err == nil {
			return r
		}
	}
	s.t.Fatal(fmt.Errorf("%s: %s: %w: %s", s.name, p.Name, err, p.Tail(5)))
	return nil
}
