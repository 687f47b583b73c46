package gateway

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

// carriers is how many goroutines carry connections.
func carriers() int {
	b := make([]byte, 1<<20)
	b = b[:runtime.Stack(b, true)]
	return strings.Count(string(b), "gateway.(*splice).carry(")
}

// talking is an egress connection that has passed a message each way.
func talking(t *testing.T, fam family, serve func(*net.TCPConn)) (*Gateway, podSide, func()) {
	t.Helper()
	g, n := start(t, nil)
	server := hostServer(t, fam, serve)
	c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), netip.AddrPortFrom(fam.host, server.Port()))
	if err != nil {
		t.Fatal(err)
	}
	echoed(t, c)
	return g, c, n.Stop
}

// podSide is a pod's end of a connection.
type podSide interface {
	net.Conn
	CloseWrite() error
}

// sendBack serves a connection.
func sendBack(c *net.TCPConn) { io.Copy(c, c) }

func TestMessagesNeedNoGoroutine(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, c, _ := talking(t, fam, sendBack)
		for range 100 {
			echoed(t, c)
		}
		if n := carriers(); n != 0 {
			t.Errorf("%d goroutines carry a connection of messages", n)
		}
		if n := g.Stats().EgressOpen; n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

func TestMuchIsCarriedByGoroutines(t *testing.T) {
	_, c, _ := talking(t, families[0], sendBack)
	got := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, c, 4<<20)
		got <- err
	}()
	if _, err := c.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if carriers() != 1 {
		t.Errorf("%d goroutines carry the connection, want 1", carriers())
	}
	echoed(t, c)
}

// A worker must not wait for a host that reads nothing, nor for a pod.
func TestAWorkerWaitsForNobody(t *testing.T) {
	for _, who := range []string{"host", "pod"} {
		t.Run(who, func(t *testing.T) {
			fam := families[0]
			g, n := start(t, nil)
			stop := make(chan struct{})
			deaf := hostServer(t, fam, func(c *net.TCPConn) {
				if who == "pod" {
					go c.Write(make([]byte, 64<<20))
				}
				<-stop
			})
			t.Cleanup(func() { close(stop) })
			other := hostServer(t, fam, sendBack)
			pod := n.Pod(fam.pod.String())
			stuck, err := pod.DialTCP(soon(t), netip.AddrPortFrom(fam.host, deaf.Port()))
			if err != nil {
				t.Fatal(err)
			}
			if who == "host" {
				go stuck.Write(make([]byte, 64<<20))
			}
			eventually(t, "stuck", func() bool { return carriers() == 1 })
			c, err := pod.DialTCP(soon(t), netip.AddrPortFrom(fam.host, other.Port()))
			if err != nil {
				t.Fatal(err)
			}
			echoed(t, c)
			if open := g.Stats().EgressOpen; open != 2 {
				t.Errorf("%d connections, want 2", open)
			}
		})
	}
}

// A connection whose pod has finished is ended all the same, while the host is silent.
func TestAHalfClosedTalkIsAborted(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		reset := make(chan error, 1)
		g, c, _ := talking(t, fam, func(c *net.TCPConn) {
			io.Copy(c, c)
			_, err := c.Write([]byte("x"))
			for err == nil {
				time.Sleep(time.Millisecond)
				_, err = c.Write([]byte("x"))
			}
			reset <- err
		})
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "half closed", func() bool {
			half := false
			g.connections.abortIf(func(c connection) bool { half = half || c.(*splice).halves.Load() == 1; return false })
			return half
		})
		g.connections.abortIf(func(connection) bool { return true })
		if err := <-reset; err == nil {
			t.Error("the host was told nothing")
		}
		eventually(t, "no connection", func() bool { return g.Stats().EgressOpen == 0 })
	})
}

// A queue that closes ends what its worker carried, so that the gateway's end waits for
// nobody.
func TestTalksEndWithTheirQueue(t *testing.T) {
	broken := make(chan error, 1)
	g, _, stop := talking(t, families[0], func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		broken <- err
	})
	stop()
	if err := <-broken; err == nil {
		t.Error("the host saw an orderly end, want a reset")
	}
	if open := g.Stats().EgressOpen; open != 0 {
		t.Errorf("%d connections, want none", open)
	}
	if n := g.memory.Taken(); n != 0 {
		t.Errorf("%d bytes of memory are still taken", n)
	}
}
