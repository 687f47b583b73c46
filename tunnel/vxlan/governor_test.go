//go:build linux

package vxlan_test

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload/offloadtest"
	"vswitch/tunnel/udp"
	"vswitch/tunnel/vxlan"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// relay stands between two tunnels, at one port, as each other's member, and does
// to the trains that pass it what a broken kernel or card does.
type relay struct {
	conn *udp.Conn
	// mangle gets the datagrams of one message and gives those to be passed on. It may change them.
	mangle atomic.Pointer[func(datagrams [][]byte) [][]byte]
	asked  atomic.Int64 // datagrams seen
	stop   atomic.Bool
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, local netip.Addr) *relay {
	t.Helper()
	c, err := udp.Listen(udp.Config{Local: netip.AddrPortFrom(local, 0), Offload: true})
	if err != nil {
		t.Fatal(err)
	}
	c.DisableGSO() // what was a train when it came leaves one by one
	r := &relay{conn: c}
	t.Cleanup(func() { r.stop.Store(true); r.wg.Wait(); c.Close() })
	return r
}

func (r *relay) port() uint16 { return r.conn.Local().Port() }

// run passes datagrams between two ports of one address.
func (r *relay) run(t *testing.T, a, b netip.AddrPort) {
	toA, toB := udp.NewDest(a), udp.NewDest(b)
	r.wg.Go(func() {
		var lost drop.Reason
		for !r.stop.Load() {
			if !readable(r.conn.FD()) {
				continue
			}
			n, err := r.conn.Receive()
			if err != nil {
				t.Error(err)
				return
			}
			for i := range n {
				m := r.conn.Message(i)
				var ds [][]byte
				for at := 0; at < len(m.Data); at += m.SegmentBytes {
					ds = append(ds, m.Data[at:min(at+m.SegmentBytes, len(m.Data))])
				}
				r.asked.Add(int64(len(ds)))
				if f := r.mangle.Load(); f != nil {
					ds = (*f)(ds)
				}
				to := toB
				if m.From.Port == b.Port() {
					to = toA
				}
				for _, d := range ds {
					r.conn.Stage(to, m.TOS, d, nil, &lost)
				}
			}
			r.conn.Flush()
		}
	})
}

// readable waits some milliseconds for a descriptor to be.
func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5)
	return err == nil && n == 1
}

// station is a tunnel with a worker: the goroutine that alone calls its queue.
type station struct {
	tunnel *vxlan.Tunnel
	todo   chan func(*vxlan.Queue)
	got    chan *frame.Frame
	log    *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// newStation opens a tunnel whose governor begins after some time.
func newStation(t *testing.T, underlay netip.Addr, mac frame.MAC, first time.Duration) *station {
	t.Helper()
	s := &station{todo: make(chan func(*vxlan.Queue)), got: make(chan *frame.Frame, 1000), log: &logBuffer{}}
	s.tunnel = open(t, vxlan.Config{
		Underlays: []netip.Addr{underlay}, Offload: true, UnderlayMTUBytes: 1500, MAC: mac,
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	s.tunnel.SetProbeTimes(first, 80*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		q, b := s.tunnel.Queue(0), frame.NewBatch(frame.BatchFrames)
		for {
			select {
			case <-stop:
				return
			case f := <-s.todo:
				f(q)
			default:
			}
			if !readable(q.PollFD()) {
				continue
			}
			b.Reset()
			if err := q.Receive(b); err != nil {
				t.Error(err)
				return
			}
			for i := range b.Len() {
				select {
				case s.got <- b.At(i).Clone():
				default: // nobody looks
				}
			}
		}
	})
	t.Cleanup(func() { close(stop); wg.Wait() })
	return s
}

// throughRelay is two stations that know each other at the relay's port.
func throughRelay(t *testing.T, underlay netip.Addr) (a, b *station, r *relay) {
	t.Helper()
	r = newRelay(t, underlay)
	a, b = newStation(t, underlay, macA, time.Millisecond), newStation(t, underlay, macB, time.Millisecond)
	r.run(t, netip.AddrPortFrom(underlay, a.tunnel.Ports()[0]), netip.AddrPortFrom(underlay, b.tunnel.Ports()[0]))
	return a, b, r
}

func (r *relay) introduce(t *testing.T, underlay netip.Addr, a, b *station) {
	t.Helper()
	ports := []uint16{r.port()}
	setPeer(t, b.tunnel, vxlan.Peer{ID: idA, Node: "a", Underlay: underlay, Ports: ports, MAC: macA})
	setPeer(t, a.tunnel, vxlan.Peer{ID: idB, Node: "b", Underlay: underlay, Ports: ports, MAC: macB})
}

func (s *station) awaitTrains(t *testing.T, id uint32, want vxlan.TrainState) (failures uint64) {
	t.Helper()
	var got vxlan.TrainState
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got, failures = s.tunnel.Trains(id); got == want {
			return failures
		}
	}
	t.Fatalf("trains %v after 10 s, want %v", got, want)
	return 0
}

// everyTrain makes a mangle of what is to be done to trains.
func everyTrain(f func(datagrams [][]byte) [][]byte) *func([][]byte) [][]byte {
	g := func(ds [][]byte) [][]byte {
		if len(ds) < 2 {
			return ds
		}
		return f(ds)
	}
	return &g
}

func TestBrokenTrainsAreGivenUp(t *testing.T) {
	for name, mangle := range map[string]func([][]byte) [][]byte{
		"second datagram damaged in its fill":   func(ds [][]byte) [][]byte { ds[1][100] ^= 4; return ds },
		"second datagram damaged in its header": func(ds [][]byte) [][]byte { ds[1][5] ^= 4; return ds },
		"second datagram lost":                  func(ds [][]byte) [][]byte { return append(ds[:1], ds[2:]...) },
		"last datagram cut short":               func(ds [][]byte) [][]byte { ds[len(ds)-1] = ds[len(ds)-1][:200]; return ds },
		"all but the first lost":                func(ds [][]byte) [][]byte { return ds[:1] },
		"sent as one":                           func(ds [][]byte) [][]byte { return [][]byte{bytes.Join(ds, nil)[:1450]} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits, mostly
			forEachFamily(t, func(t *testing.T, underlay netip.Addr) {
				if underlay.Is6() && name != "second datagram lost" {
					return // one is enough
				}
				a, b, r := throughRelay(t, underlay)
				broken := everyTrain(mangle)
				r.mangle.Store(broken)
				r.introduce(t, underlay, a, b)
				if n := a.awaitTrains(t, idB, vxlan.TrainsOff); n != 1 {
					t.Errorf("%d failures counted, want 1", n)
				}
				if n := a.log.count("level=WARN"); n != 1 {
					t.Errorf("%d warnings, want 1:\n%s", n, a.log.b.String())
				}
				// What follows is whole, since it goes one by one.
				super := offloadtest.TCP4(offloadtest.Random(20000, 1))
				f := super.Super(1300)
				a.todo <- func(q *vxlan.Queue) { transmit(q, idB, f) }
				var payload []byte
				for deadline := time.After(5 * time.Second); len(payload) < len(super.Payload); {
					select {
					case got := <-b.got:
						if got.Drop == drop.None {
							payload = append(payload, got.Bytes()[super.HeaderBytes():]...)
						}
					case <-deadline:
						t.Fatalf("%d of %d bytes arrived", len(payload), len(super.Payload))
					}
				}
				if !bytes.Equal(payload, super.Payload) {
					t.Error("other bytes arrived than were sent")
				}
				// The member is set again, as by a change of its routes: nothing is forgotten.
				r.introduce(t, underlay, a, b)
				if s, n := a.tunnel.Trains(idB); s != vxlan.TrainsOff || n != 1 {
					t.Errorf("after the member was set again: %v, %d failures", s, n)
				}
				r.mangle.Store(nil)
				a.awaitTrains(t, idB, vxlan.TrainsOn)
				r.mangle.Store(broken)
				if n := a.awaitTrains(t, idB, vxlan.TrainsOff); n != 2 {
					t.Errorf("%d failures counted, want 2", n)
				}
			})
		})
	}
}

// One packet in ten lost, whatever it travels in: that is no fault of trains.
func TestLossIsNotTakenForBrokenTrains(t *testing.T) {
	underlay := loopbacks["IPv4"]
	a, b, r := throughRelay(t, underlay)
	rng := rand.New(rand.NewPCG(1, 2)) // the relay's goroutine alone uses it
	lossy := func(ds [][]byte) [][]byte {
		var kept [][]byte
		for _, d := range ds {
			if rng.IntN(10) > 0 {
				kept = append(kept, d)
			}
		}
		return kept
	}
	r.mangle.Store(&lossy)
	r.introduce(t, underlay, a, b)
	if n := a.awaitTrains(t, idB, vxlan.TrainsOn); n != 0 {
		t.Errorf("%d failures counted", n)
	}
}

// Where something was lost that was no train's, a place of the train that is missing three
// times in a row may have been lost so, too.
func TestATrainHasMoreAttemptsWhereOthersAreLost(t *testing.T) {
	underlay := loopbacks["IPv4"]
	a, b, r := throughRelay(t, underlay)
	b.tunnel.SetProbeTimes(time.Hour, time.Hour, time.Hour, time.Hour) // one of the two asks
	trains, alone := 0, 0                                              // the relay's goroutine alone uses them
	unlucky := func(ds [][]byte) [][]byte {
		if len(ds) > 1 {
			if trains++; trains <= 3 {
				return append(ds[:1], ds[2:]...)
			}
		} else if alone++; alone == 1 {
			return nil
		}
		return ds
	}
	r.mangle.Store(&unlucky)
	r.introduce(t, underlay, a, b)
	if n := a.awaitTrains(t, idB, vxlan.TrainsOn); n != 0 {
		t.Errorf("%d failures counted", n)
	}
}

// Nothing is held against a peer that does not answer.
func TestSilenceProvesNothing(t *testing.T) {
	underlay := loopbacks["IPv4"]
	a, b, r := throughRelay(t, underlay)
	silent := func([][]byte) [][]byte { return nil }
	r.mangle.Store(&silent)
	r.introduce(t, underlay, a, b)
	for deadline := time.Now().Add(10 * time.Second); r.asked.Load() < 50; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d datagrams of probes in 10 s", r.asked.Load())
		}
	}
	if s, n := a.tunnel.Trains(idB); s != vxlan.TrainsUnchecked || n != 0 {
		t.Errorf("trains %v, %d failures", s, n)
	}
}

// asker is a plain socket that sends probes to a tunnel.
func asker(t *testing.T) *udp.Conn {
	t.Helper()
	c, err := udp.Listen(udp.Config{Local: netip.AddrPortFrom(loopbacks["IPv4"], 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends n probes of some size, then reads answers until none has come for a moment.
func ask(t *testing.T, c *udp.Conn, tun *vxlan.Tunnel, n, size int, change func([]byte)) (intact, damaged int) {
	t.Helper()
	dest := udp.NewDest(netip.AddrPortFrom(loopbacks["IPv4"], tun.Ports()[0]))
	var lost drop.Reason
	for i := range n {
		b := make([]byte, size)
		vxlan.SealProbe(b, uint8(i), 77)
		if change != nil {
			change(b)
		}
		c.Stage(dest, 0, b, nil, &lost)
		c.Flush()
	}
	for idle := 0; idle < 40; {
		if !readable(c.FD()) {
			idle++
			continue
		}
		k, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i := range k {
			data := c.Message(i).Data
			_, nonce, bad, ok := vxlan.ReadAnswer(data)
			if !ok || nonce != 77 || len(data) >= vxlan.MinProbeBytes {
				t.Fatalf("answer of %d bytes: % x", len(data), data[:min(16, len(data))])
			}
			if bad {
				damaged++
			} else {
				intact++
			}
		}
	}
	return intact, damaged
}

func TestWhoIsAnswered(t *testing.T) {
	local := loopbacks["IPv4"]
	for _, tt := range []struct {
		name            string
		member, anyPort bool
		n, size         int
		change          func([]byte)
		intact, damaged int
	}{
		{name: "a member", member: true, n: 3, size: 1000, intact: 3},
		{name: "a member whose probe was damaged", member: true, n: 3, size: 1000, change: func(b []byte) { b[500]++ }, damaged: 3},
		{name: "a member's probe that is shorter than probes are", member: true, n: 3, size: vxlan.MinProbeBytes - 1},
		{name: "a stranger", n: 3, size: 1000},
		{name: "a node of the kernel's", member: true, anyPort: true, n: 3, size: 1000},
		{name: "VXLAN", member: true, n: 3, size: 1000, change: func(b []byte) { b[0] = 8 }},
		{name: "an unknown kind", member: true, n: 3, size: 1000, change: func(b []byte) { b[2] = 9 }},
		{name: "an answer is not answered", member: true, n: 3, size: 1000, change: func(b []byte) { b[2] = 2 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, c := newStation(t, local, macB, time.Hour), asker(t)
			if tt.member {
				setPeer(t, s.tunnel, vxlan.Peer{ID: idA, Node: "a", Underlay: local, Ports: []uint16{c.Local().Port()}, AnyPort: tt.anyPort, MAC: macA})
			}
			intact, damaged := ask(t, c, s.tunnel, tt.n, tt.size, tt.change)
			if intact != tt.intact || damaged != tt.damaged {
				t.Errorf("%d answered as intact, %d as damaged; want %d, %d", intact, damaged, tt.intact, tt.damaged)
			}
		})
	}
}

func TestAnswersAreLimited(t *testing.T) {
	local := loopbacks["IPv4"]
	s, c := newStation(t, local, macB, time.Hour), asker(t)
	setPeer(t, s.tunnel, vxlan.Peer{ID: idA, Node: "a", Underlay: local, Ports: []uint16{c.Local().Port()}, MAC: macA})
	began := time.Now()
	intact, _ := ask(t, c, s.tunnel, 10*vxlan.AnswersPerSecond, 200, nil)
	most := vxlan.AnswersPerSecond * (2 + int(time.Since(began)/time.Second)) // a second may have begun in between
	if intact < vxlan.AnswersPerSecond || intact > most {
		t.Errorf("%d answers to %d probes, want %d, or as many for each second begun", intact, 10*vxlan.AnswersPerSecond, vxlan.AnswersPerSecond)
	}
}

// Without trains of our own nobody is asked.
func TestOffloadOffAsksNobody(t *testing.T) {
	local := loopbacks["IPv4"]
	c := asker(t)
	tun := open(t, vxlan.Config{Underlays: []netip.Addr{local}, UnderlayMTUBytes: 1500, MAC: macA})
	tun.SetProbeTimes(time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond)
	setPeer(t, tun, vxlan.Peer{ID: idB, Node: "b", Underlay: local, Ports: []uint16{c.Local().Port()}, MAC: macB})
	if s, _ := tun.Trains(idB); s != vxlan.TrainsOff {
		t.Errorf("trains %v, want off", s)
	}
	if tun.Probes() {
		t.Error("the governor runs")
	}
}
