package gateway

import (
	"net"
	"testing"
	"time"

	"vswitch/internal/wire"
	"vswitch/vswitch/frame"
)

// A host that pauses now and then, as a busy one does, loses nothing: the netstack
// must not take the pause for a loss and slow down. An exchange in which the machine
// paused all of this for longer, until the timer of the retransmissions ended (200 ms, and
// rightly so), shows nothing, and another is made.
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
		tcp := g.stack.Stats().TCP
		const attempts = 3
		for range attempts {
			timeouts, again, recoveries := tcp.Timeouts.Value(), tcp.Retransmits.Value(), tcp.SACKRecovery.Value()
			c, err := net.Dial("tcp", fam.hostPort(port))
			if err != nil {
				t.Fatal(err)
			}
			exchange(t, c.(*net.TCPConn), 16<<20)
			c.Close()
			if n := tcp.Timeouts.Value() - timeouts; n != 0 {
				t.Logf("the timer ended %d times", n)
				continue
			}
			if n := tcp.Retransmits.Value() - again; n != 0 {
				t.Errorf("%d segments sent again, %d recoveries, though none was lost", n, tcp.SACKRecovery.Value()-recoveries)
			}
			return
		}
		t.Errorf("in each of %d exchanges the timer ended", attempts)
	})
}
