package gateway

import (
	"net"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// A host that pauses now and then, as a busy one does, loses nothing: the netstack
// must not take the pause for a loss and slow down.
func TestPausesAreNoLosses(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		g, n := start(t, onLoopback)
		podServer(n, fam)
		port := freePort(t)
		if err := g.PutService(published(wire.ProtoTCP, port)); err != nil {
			t.Fatal(err)
		}
		frames := 0
		n.Watch(func(*frame.Frame, bool) {
			if frames++; frames%50 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		})
		c, err := net.Dial("tcp", fam.hostPort(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c.(*net.TCPConn), 16<<20)
		s := g.stack.Stats().TCP
		if r := s.Retransmits.Value(); r != 0 {
			t.Errorf("%d segments sent again, %d recoveries, though none was lost", r, s.SACKRecovery.Value())
		}
	})
}
