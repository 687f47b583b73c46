package tap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

const allFeatures = knownFeatures

var _ vswitch.Queue = (*Queue)(nil)

// queuePair makes a queue over one end of a socket pair, which keeps message
// boundaries as a TAP does, and returns the other end.
func queuePair(t *testing.T, f Features) (*Queue, int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(p[0], f, "pair")
	t.Cleanup(func() {
		q.Close()
		unix.Close(p[1])
	})
	return q, p[1]
}

func write(t *testing.T, fd int, b []byte) {
	t.Helper()
	if n, err := unix.Write(fd, b); n != len(b) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(b), err)
	}
}

// drain reads every message that waits on fd.
func drain(t *testing.T, fd int) [][]byte {
	t.Helper()
	var got [][]byte
	for {
		b := make([]byte, frame.VNetHeaderBytes+frame.MaxBytes)
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n])
	}
}

func frameOf(v frame.VNet, b []byte) *frame.Frame {
	f := frame.New()
	f.Set(b)
	f.VNet = v
	return f
}

func headed(v frame.VNet, b []byte) []byte {
	raw := make([]byte, frame.VNetHeaderBytes, frame.VNetHeaderBytes+len(b))
	v.Encode(raw)
	return append(raw, b...)
}

func TestReceive(t *testing.T) {
	tcp := packet(false, wire.ProtoTCP, 0, 5000)
	for _, tt := range []struct {
		name     string
		features Features
		raw      []byte
		bytes    []byte
		v        frame.VNet
		reason   drop.Reason
	}{
		{"frame with metadata", allFeatures, headed(tso4, tcp), tcp, tso4, drop.None},
		{"plain frame", 0, tcp, tcp, frame.VNet{}, drop.None},
		{"metadata that contradicts the frame", allFeatures, headed(tso6, tcp), tcp, tso6, drop.BadOffload},
		{"runt", allFeatures, headed(frame.VNet{}, tcp[:13]), tcp[:13], frame.VNet{}, drop.Truncated},
		{"plain runt", 0, tcp[:13], tcp[:13], frame.VNet{}, drop.Truncated},
		{"less than a header", allFeatures, []byte{1, 2, 3}, nil, frame.VNet{}, drop.Truncated},
		{"longest frame", allFeatures, headed(frame.VNet{}, make([]byte, frame.MaxBytes)), make([]byte, frame.MaxBytes), frame.VNet{}, drop.None},
		{"longer than any frame", allFeatures, headed(frame.VNet{}, make([]byte, frame.MaxBytes+1)), make([]byte, frame.MaxBytes), frame.VNet{}, drop.Truncated},
		{"plain and longer than any frame", 0, make([]byte, frame.MaxBytes+100), make([]byte, frame.MaxBytes), frame.VNet{}, drop.Truncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, peer := queuePair(t, tt.features)
			write(t, peer, tt.raw)
			b := frame.NewBatch(2)
			if err := q.Receive(b); err != nil || b.Len() != 1 {
				t.Fatalf("%d frames, %v; want 1", b.Len(), err)
			}
			f := b.At(0)
			if f.Drop != tt.reason || f.VNet != tt.v || !bytes.Equal(f.Bytes(), tt.bytes) {
				t.Errorf("%d bytes, %+v, %v; want %d, %+v, %v", f.Len(), f.VNet, f.Drop, len(tt.bytes), tt.v, tt.reason)
			}
		})
	}
}

func TestReceiveStopsWhenDrainedOrFull(t *testing.T) {
	q, peer := queuePair(t, allFeatures)
	b := frame.NewBatch(2)
	if err := q.Receive(b); err != nil || b.Len() != 0 {
		t.Fatalf("nothing pending: %d frames, %v", b.Len(), err)
	}
	for i := range 3 {
		write(t, peer, headed(frame.VNet{}, packet(false, wire.ProtoUDP, 0, i)))
	}
	for _, want := range []int{2, 1, 0} {
		b.Reset()
		if err := q.Receive(b); err != nil || b.Len() != want {
			t.Fatalf("%d frames, %v; want %d", b.Len(), err, want)
		}
	}
}

func TestReceiveOnADeadDescriptorIsAnError(t *testing.T) {
	q, peer := queuePair(t, allFeatures)
	unix.Shutdown(peer, unix.SHUT_WR)
	b := frame.NewBatch(2)
	if err := q.Receive(b); !errors.Is(err, io.EOF) || b.Len() != 0 {
		t.Errorf("other end gone: %v, %d frames", err, b.Len())
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := q.Receive(b); !errors.Is(err, unix.EBADF) {
		t.Errorf("after Close: %v, want EBADF", err)
	}
}

func TestTransmitWritesHeaderAndFrameTogether(t *testing.T) {
	tcp, udp := packet(false, wire.ProtoTCP, 0, 5000), packet(true, wire.ProtoUDP, 0, 5000)
	q, peer := queuePair(t, allFeatures)
	fs := []*frame.Frame{frameOf(tso4, tcp), frameOf(uso6, udp), frameOf(frame.VNet{}, tcp)}
	fs[1].Drop = drop.NoRoute // stale: Transmit's own answer counts
	q.Transmit(fs)
	for i, f := range fs {
		if f.Drop != drop.None {
			t.Errorf("frame %d: %v", i, f.Drop)
		}
	}
	got := drain(t, peer)
	want := [][]byte{headed(tso4, tcp), headed(uso6, udp), headed(frame.VNet{}, tcp)}
	if len(got) != len(want) {
		t.Fatalf("%d writes, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("write %d has %d bytes % x..., want %d % x...", i, len(got[i]), got[i][:10], len(want[i]), want[i][:10])
		}
	}
}

func TestTransmitNamesWhyAFrameWasNotSent(t *testing.T) {
	f := func() *frame.Frame { return frameOf(frame.VNet{}, packet(false, wire.ProtoUDP, 0, 4000)) }
	q, peer := queuePair(t, allFeatures)
	for {
		one := f()
		q.Transmit([]*frame.Frame{one})
		if one.Drop != drop.None {
			if one.Drop != drop.EgressFull {
				t.Errorf("queue full: %v", one.Drop)
			}
			break
		}
	}
	drain(t, peer)
	unix.Shutdown(peer, unix.SHUT_RD)
	one := f()
	if q.Transmit([]*frame.Frame{one}); one.Drop != drop.EgressDown {
		t.Errorf("other end gone: %v", one.Drop)
	}
	for errno, want := range map[unix.Errno]drop.Reason{
		0:           drop.None,
		unix.EAGAIN: drop.EgressFull, unix.ENOBUFS: drop.EgressFull, unix.ENOMEM: drop.EgressFull,
		unix.EIO: drop.EgressDown, unix.EBADFD: drop.EgressDown, unix.EBADF: drop.EgressDown,
		unix.EINVAL: drop.EgressRefused, unix.EMSGSIZE: drop.EgressRefused,
	} {
		if got := transmitReason(errno); got != want {
			t.Errorf("%v: %v, want %v", errno, got, want)
		}
	}
}

// openChecksum sets the checksum field to the folded pseudo-header sum, as a kernel
// leaves it, computed one word at a time.
func openChecksum(b []byte, v6 bool, proto uint8, l4, field int) []byte {
	addrs := b[26:34]
	if v6 {
		addrs = b[22:54]
	}
	sum := uint32(proto) + uint32(len(b)-l4)
	for i := 0; i < len(addrs); i += 2 {
		sum += uint32(addrs[i])<<8 | uint32(addrs[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[l4+field:], uint16(sum))
	return b
}

// checksumOK sums transport header, payload and pseudo-header word by word.
func checksumOK(b []byte, v6 bool, proto uint8, l4 int) bool {
	var words []byte
	if v6 {
		words = append(words, b[22:54]...)
	} else {
		words = append(words, b[26:34]...)
	}
	words = append(words, 0, proto, byte((len(b)-l4)>>8), byte(len(b)-l4))
	words = append(words, b[l4:]...)
	if len(words)%2 == 1 {
		words = append(words, 0)
	}
	sum := uint32(0)
	for i := 0; i < len(words); i += 2 {
		sum += uint32(words[i])<<8 | uint32(words[i+1])
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

// TestSoftwareOffload sends what the device can't take and judges what it gets.
func TestSoftwareOffload(t *testing.T) {
	for _, tt := range []struct {
		name     string
		features Features
		v6       bool
		proto    uint8
		v        frame.VNet
		payload  int
		frames   int
	}{
		{"checksum on a plain device", 0, false, wire.ProtoTCP, tcp4, 1001, 1},
		{"TSO4 on a plain device", 0, false, wire.ProtoTCP, tso4, 4500, 5},
		{"TSO6 on a plain device", 0, true, wire.ProtoTCP, tso6, 64000, 64},
		{"USO4 on a plain device", 0, false, wire.ProtoUDP, uso4, 4500, 5},
		{"USO6 on a plain device", 0, true, wire.ProtoUDP, uso6, 3000, 3},
		{"USO4 on a kernel before 6.2", allFeatures &^ USO, false, wire.ProtoUDP, uso4, 4500, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l4, field := int(tt.v.CsumStart), int(tt.v.CsumOffset)
			b := openChecksum(packet(tt.v6, tt.proto, 0, tt.payload), tt.v6, tt.proto, l4, field)
			want := bytes.Clone(b[len(b)-tt.payload:])
			q, peer := queuePair(t, tt.features)
			f := frameOf(tt.v, b)
			if q.Transmit([]*frame.Frame{f}); f.Drop != drop.None {
				t.Fatal(f.Drop)
			}
			var payload []byte
			got := drain(t, peer)
			for i, raw := range got {
				if tt.features.Has(VNet) {
					if !bytes.Equal(raw[:frame.VNetHeaderBytes], make([]byte, frame.VNetHeaderBytes)) {
						t.Errorf("segment %d: header % x, want none of its fields set", i, raw[:frame.VNetHeaderBytes])
					}
					raw = raw[frame.VNetHeaderBytes:]
				}
				var h wire.Headers
				if r := wire.Parse(raw, &h); r != drop.None || h.End != len(raw) {
					t.Fatalf("segment %d: %v, %d of %d bytes", i, r, h.End, len(raw))
				}
				if !checksumOK(raw, tt.v6, tt.proto, l4) {
					t.Errorf("segment %d: bad checksum", i)
				}
				payload = append(payload, raw[h.PayloadOff:]...)
			}
			if len(got) != tt.frames || !bytes.Equal(payload, want) {
				t.Errorf("%d frames with %d bytes, want %d with the %d sent", len(got), len(payload), tt.frames, len(want))
			}
		})
	}
}

func TestSoftwareOffloadRefusesWhatItCanNotDo(t *testing.T) {
	q, peer := queuePair(t, 0)
	for _, tt := range []struct {
		name string
		f    *frame.Frame
		want drop.Reason
	}{
		{"metadata that contradicts the frame", frameOf(tso6, packet(false, wire.ProtoTCP, 0, 5000)), drop.BadOffload},
		{"no header that can be read", frameOf(tcp4, make([]byte, 60)), drop.UnknownType},
	} {
		if q.Transmit([]*frame.Frame{tt.f}); tt.f.Drop != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, tt.f.Drop, tt.want)
		}
	}
	if got := drain(t, peer); len(got) != 0 {
		t.Errorf("%d frames were sent", len(got))
	}
}

func TestQueueAllocatesNothing(t *testing.T) {
	for _, tt := range []struct {
		name     string
		features Features
	}{{"vnet", allFeatures}, {"plain", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			q, peer := queuePair(t, tt.features)
			other := newQueue(peer, tt.features, "peer")
			fs := []*frame.Frame{frameOf(tso4, packet(false, wire.ProtoTCP, 0, 5000)), frameOf(frame.VNet{}, packet(true, wire.ProtoUDP, 0, 10))}
			b := frame.NewBatch(frame.BatchFrames)
			if n := testing.AllocsPerRun(100, func() {
				q.Transmit(fs)
				b.Reset()
				if err := other.Receive(b); err != nil || b.Len() < 2 || fs[0].Drop != drop.None || fs[1].Drop != drop.None {
					t.Fatalf("%d frames, %v", b.Len(), err)
				}
			}); n != 0 {
				t.Errorf("%v allocations a batch", n)
			}
		})
	}
}

func TestNewQueueRefusesWhatIsNoTAP(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := NewQueue(int(r.Fd()), allFeatures); !errors.Is(err, ErrNotTAP) {
		t.Errorf("pipe: %v, want ErrNotTAP", err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Errorf("NewQueue closed a descriptor that it refused: %v", err)
	}
	for _, f := range []Features{CSUM, VNet | TSO4, 1 << 20} {
		if _, err := NewQueue(int(r.Fd()), f); err == nil || errors.Is(err, ErrNotTAP) {
			t.Errorf("features %v: %v, want an error about them", f, err)
		}
	}
}
