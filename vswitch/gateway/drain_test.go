package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
)

// TestDrainWaitsForWhatIsUnderWay: connections that are open go on and end in order,
// and no other begins.
func TestDrainWaitsForWhatIsUnderWay(t *testing.T) {
	g, n := start(t, onLoopback)
	fam := families[0]
	pod := n.Pod(pod4.String())
	l := pod.ListenTCP(netip.AddrPortFrom(pod4, 8080))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	port := freePort(t)
	if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
		t.Fatal(err)
	}
	server := hostServer(t, fam, func(c *net.TCPConn) { io.Copy(c, c) })
	egress, err := pod.DialTCP(soon(t), server)
	if err != nil {
		t.Fatal(err)
	}
	ingress, err := net.Dial("tcp", fam.hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	conns := []net.Conn{egress, ingress}
	for _, c := range conns {
		echoed(t, c)
	}

	short, cancel := context.WithTimeout(t.Context(), 3*drainPoll)
	defer cancel()
	if left := g.Drain(short, false); left != len(conns) {
		t.Errorf("%d connections left after a short time, want %d", left, len(conns))
	}
	if _, err := net.Dial("tcp", fam.hostPort(port)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a client outside, while it drains: %v, want connection refused", err)
	}
	silent, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := pod.DialTCP(silent, server); err == nil {
		c.Close()
		t.Error("a pod's connection began while the gateway drains")
	} else if n.Drops(drop.Draining) == 0 {
		t.Errorf("a pod's connection while it drains: %v, and no SYN dropped for it", err)
	}
	drained := make(chan int)
	go func() { drained <- g.Drain(t.Context(), false) }()
	for _, c := range conns {
		echoed(t, c)
		select {
		case left := <-drained:
			t.Fatalf("drained with a connection open, %d left", left)
		default:
		}
		c.Close()
	}
	select {
	case left := <-drained:
		if left != 0 {
			t.Errorf("%d left", left)
		}
	case <-time.After(10 * time.Second):
		t.Error("it drains for ever")
	}
}

// TestDrainWaitsForWhatIsBeingMade: a client that has been let in is under way before the
// pod that it is for has answered.
func TestDrainWaitsForWhatIsBeingMade(t *testing.T) {
	g, _ := start(t, onLoopback) // where the service leads nobody answers
	port := freePort(t)
	if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", families[0].hostPort(port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the client is let in", func() bool { return g.Stats().IngressTotal == 1 })
	short, cancel := context.WithTimeout(t.Context(), 3*drainPoll)
	defer cancel()
	if left := g.Drain(short, false); left != 1 {
		t.Errorf("%d connections left after a short time, want 1", left)
	}
}

func echoed(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("%q, %v", b, err)
	}
}
