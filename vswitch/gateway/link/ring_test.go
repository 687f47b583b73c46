package link

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vswitch/vswitch/frame"
)

func newLink(t testing.TB, queues, packets int, h Handler) *Link {
	t.Helper()
	l, err := New(Config{Queues: queues, RingPackets: packets, MTUBytes: 1500, MAC: frame.MAC{2, 0, 0x5e, 0, 0, 1}, Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// readable waits for the queue's descriptor.
func readable(t testing.TB, q *Queue, timeout time.Duration) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(q.PollFD()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(timeout.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
}

func packet(bytes int) *stack.PacketBuffer {
	b := make([]byte, bytes)
	b[0] = 0x45
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

// The writer pushes a burst the moment it sees the ring empty, which is when the
// receiver is about to go to sleep; until that burst is gone nothing else wakes
// it. A packet that waits behind an unreadable descriptor is a wake-up lost.
func TestNoWakeUpIsLost(t *testing.T) {
	const bursts, burst = 20_000, 3
	l := newLink(t, 1, 8, nil)
	q := l.Queue(0)
	waiting := func() int {
		q.ring.mu.Lock()
		defer q.ring.mu.Unlock()
		return q.ring.n
	}
	var stop atomic.Bool
	var writing sync.WaitGroup
	writing.Go(func() {
		pkt := packet(100)
		defer pkt.DecRef()
		for range bursts {
			for waiting() > 0 {
				if stop.Load() {
					return
				}
			}
			for range burst {
				l.write(pkt)
			}
		}
	})
	defer writing.Wait()
	defer stop.Store(true)
	b := frame.NewBatch(1) // full at once, so that packets are left behind
	for received := 0; received < bursts*burst; received += b.Len() {
		b.Reset()
		for !readable(t, q, 100*time.Millisecond) {
			// A push and its signal are one step under the ring's lock.
			if n := waiting(); n > 0 && !readable(t, q, 0) {
				t.Fatalf("after %d packets: asleep with %d pending", received, n)
			}
		}
		if err := q.Receive(b); err != nil {
			t.Fatal(err)
		}
	}
	if readable(t, q, 0) && waiting() == 0 {
		b.Reset()
		if q.Receive(b); b.Len() != 0 || readable(t, q, 0) {
			t.Error("readable with nothing pending")
		}
	}
}

// What the descriptor does at each step, alone.
func TestTheDescriptorTellsTheTruth(t *testing.T) {
	l := newLink(t, 1, 8, nil)
	q := l.Queue(0)
	b := frame.NewBatch(2)
	pkt := packet(100)
	defer pkt.DecRef()
	receive := func(want int) {
		t.Helper()
		b.Reset()
		q.Receive(b)
		if b.Len() != want {
			t.Fatalf("%d frames received, want %d", b.Len(), want)
		}
	}
	if readable(t, q, 0) {
		t.Fatal("readable when new")
	}
	for range 3 {
		l.write(pkt)
	}
	if !readable(t, q, 0) {
		t.Fatal("not readable with three packets")
	}
	receive(2)
	if !readable(t, q, 0) {
		t.Fatal("not readable with one packet left")
	}
	receive(1)
	if readable(t, q, 0) {
		t.Fatal("readable when empty")
	}
	receive(0)
	l.write(pkt)
	if !readable(t, q, 0) {
		t.Fatal("not readable after the second wake-up")
	}
	for range 20 {
		l.write(pkt)
	}
	if got := l.Dropped(); got != 13 {
		t.Fatalf("%d packets dropped by a full ring, want 13", got)
	}
}

func TestAClosedQueueKeepsNothing(t *testing.T) {
	l := newLink(t, 1, 8, nil)
	released := 0
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithData(make([]byte, 20)), OnRelease: func() { released++ },
	})
	l.write(pkt)
	pkt.DecRef()
	if released != 0 {
		t.Fatal("released while waiting")
	}
	l.Queue(0).Close()
	if released != 1 {
		t.Fatal("a waiting packet was not released")
	}
	other := packet(20)
	defer other.DecRef()
	if l.write(other) {
		t.Fatal("a closed queue took a packet")
	}
	if err := l.Queue(0).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFlowsKeepToAQueue(t *testing.T) {
	l := newLink(t, 4, 4096, nil)
	used := make(map[int]int)
	for hash := range uint32(400) {
		for range 2 {
			pkt := packet(100)
			pkt.Hash = (hash + 1) * 2654435761
			l.write(pkt)
			pkt.DecRef()
		}
	}
	for i := range l.queues {
		used[i] = l.queues[i].ring.n
		if used[i]%2 != 0 {
			t.Errorf("queue %d got %d packets: a flow was split", i, used[i])
		}
		if used[i] == 0 {
			t.Errorf("queue %d got none of 400 flows", i)
		}
	}
}

func BenchmarkRing(b *testing.B) {
	l := newLink(b, 1, 1024, nil)
	q := l.Queue(0)
	pkt := packet(1500)
	defer pkt.DecRef()
	batch := frame.NewBatch(frame.BatchFrames)
	b.SetBytes(1500)
	b.ReportAllocs()
	for b.Loop() {
		for range frame.BatchFrames {
			l.write(pkt)
		}
		batch.Reset()
		q.Receive(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame.BatchFrames, "ns/frame")
}
