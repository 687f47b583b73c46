package gateway

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vswitch/internal/share"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// A zero window for ever, on either side: what piles up stays within the pool, half
// of it for one pod, and another pod's connections go on.
func TestStalledConnectionsStayWithinTheirMemory(t *testing.T) {
	const memory = 8 << 20
	for _, side := range []string{"the pod reads nothing", "the host reads nothing"} {
		t.Run(side, func(t *testing.T) {
			g, n := start(t, func(c *Config) { c.MemoryBytes = memory })
			fam := families[0]
			over := make(chan struct{})
			defer close(over)
			to := hostServer(t, fam, func(c *net.TCPConn) {
				if side == "the pod reads nothing" {
					go func() {
						<-over
						c.Close()
					}()
					for buf := make([]byte, 1<<20); ; {
						if _, err := c.Write(buf); err != nil {
							return
						}
					}
				}
				<-over
			})
			pod := n.Pod("10.244.1.66")
			for range 100 {
				c, err := pod.DialTCP(soon(t), to)
				if err != nil && strings.Contains(err.Error(), (&tcpip.ErrConnectionReset{}).String()) && g.Stats().MemoryCapped > 0 {
					continue // refused for want of room, a moment sooner than usual
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if side == "the host reads nothing" {
					go func() {
						for buf := make([]byte, 1<<20); ; {
							if _, err := c.Write(buf); err != nil {
								return
							}
						}
					}()
				}
			}
			eventually(t, "more connections than there is room for", func() bool { return g.Stats().MemoryCapped > 0 })
			// What moves at all has moved when nothing did for a while.
			for last, same := uint64(0), 0; same < 5; time.Sleep(50 * time.Millisecond) {
				s := g.Stats()
				if s.MemoryBytes > memory/2 {
					t.Fatalf("one pod holds %d bytes of %d", s.MemoryBytes, memory)
				}
				if same++; s.Bytes != last {
					last, same = s.Bytes, 0
				}
			}
			s := g.Stats()
			if s.EgressOpen < memory/4/(4*firstBufferBytes+spliceBytes) || s.EgressOpen == 100 {
				t.Errorf("%d connections of 100 are open in half of %d bytes", s.EgressOpen, memory)
			}
			c, err := n.Pod(pod4.String()).DialTCP(soon(t), hostServer(t, fam, echo))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			exchange(t, c, 4<<20)
			n.AbortPods()
			eventually(t, "all given back", func() bool { return g.Stats().MemoryBytes == 0 })
		})
	}
}

// With room for next to nothing bytes still arrive as they were sent.
func TestTheSmallestBuffersCarryEverything(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, func(c *Config) { c.MemoryBytes = 8 * leastBufferBytes })
		c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), hostServer(t, fam, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		exchange(t, c, 2<<20)
	})
}

// A connection that moves what it gets is given more, until it has the most there is.
func TestBuffersGrowWithUse(t *testing.T) {
	for _, direction := range []string{"to the pod", "to the host"} {
		t.Run(direction, func(t *testing.T) {
			g, n := start(t, func(c *Config) { c.MemoryBytes = 1 << 30 })
			c, err := n.Pod(pod4.String()).DialTCP(soon(t), hostServer(t, families[0], func(c *net.TCPConn) {
				if direction == "to the host" {
					io.Copy(io.Discard, c)
					return
				}
				for buf := make([]byte, 1<<20); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			eventually(t, "connected", func() bool { return g.Stats().MemoryBytes >= 4*firstBufferBytes })
			buf := make([]byte, 1<<20)
			for ctx := soon(t); g.Stats().MemoryBytes < 2<<20; {
				if ctx.Err() != nil {
					t.Fatalf("%d bytes allowed after %d were moved", g.Stats().MemoryBytes, g.Stats().Bytes)
				}
				if direction == "to the host" {
					_, err = c.Write(buf)
				} else {
					_, err = c.Read(buf)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c.Close()
			n.AbortPods()
			eventually(t, "all given back", func() bool { return g.Stats().MemoryBytes == 0 })
		})
	}
}

// What an allowance has taken is what its buffers and the way between them need.
func TestAllowances(t *testing.T) {
	g, _ := start(t, nil)
	ep, terr := g.stack.NewEndpoint(tcp.ProtocolNumber, header.IPv4ProtocolNumber, new(waiter.Queue))
	if terr != nil {
		t.Fatal(terr)
	}
	defer ep.Close()
	pool := share.New[wire.Addr](1 << 30)
	a := newAllowance(pool, &podConn{ep: ep})
	for range 20 {
		want := a.send + a.receive + min(a.send, spliceBytes) + min(a.receive, spliceBytes)
		if a.taken != want || pool.Taken() != want {
			t.Fatalf("buffers of %d and %d: %d taken, want %d", a.send, a.receive, a.taken, want)
		}
		a.growSend()
	}
	if a.send != bufferMaxBytes {
		t.Errorf("a buffer grew to %d, want %d", a.send, bufferMaxBytes)
	}
	a.close()
	if pool.Taken() != 0 {
		t.Errorf("%d taken after close", pool.Taken())
	}
}

// A Linux peer makes segments up to half of the largest window it has seen, and at a
// large MTU waits for a window that holds one: none is announced that an allowance
// would take back.
func TestNoWindowShrinks(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		_, n := start(t, func(c *Config) { c.MTUBytes = 65535 })
		var mu sync.Mutex
		var windows []int // announced by the gateway, in bytes; guarded by mu
		shift := 0
		watch := func(f *frame.Frame, fromGateway bool) {
			var h wire.Headers
			if !fromGateway || wire.Parse(f.Bytes(), &h) != drop.None || h.Proto != wire.ProtoTCP {
				return
			}
			segment := header.TCP(f.Bytes()[h.L4Off:])
			mu.Lock()
			defer mu.Unlock()
			if segment.Flags()&header.TCPFlagSyn != 0 { // its window is not scaled (RFC 7323 section 2.2)
				shift = header.ParseSynOptions(segment.Options(), true).WS
				windows = append(windows, int(segment.WindowSize()))
			} else if segment.Flags() == header.TCPFlagAck {
				windows = append(windows, int(segment.WindowSize())<<shift)
			}
		}
		n.Watch(watch)
		defer n.Watch(nil)
		c, err := n.Pod(fam.pod.String()).DialTCP(soon(t), hostServer(t, fam, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// A little at a time, so that what is announced is the whole window; and more than
		// the first, which is never taken back before it is used.
		for sent, some := 0, make([]byte, 1024); sent < 2*firstBufferBytes; sent += len(some) {
			if _, err := c.Write(some); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, some); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		const slack = 2048 // of the netstack's own, for a segment that waits, and of the scale
		if len(windows) < 2 {
			t.Fatalf("%d windows were announced, want more", len(windows))
		}
		for _, w := range windows[1:] {
			if w < windows[0]-slack {
				t.Errorf("a window of %d bytes after one of %d", w, windows[0])
				break
			}
		}
	})
}
