package frame

import (
	"bytes"
	"testing"

	"vswitch/vswitch/drop"
)

// marked is a frame with something in every field that Reset must clear.
func marked() *Frame {
	f := New()
	f.Set([]byte("fourteen bytes and more"))
	f.VNet = VNet{Flags: NeedsCsum, GSOType: GSOTCPv4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	f.Peer, f.Hash, f.Drop = 7, 8, drop.NoRoute
	return f
}

func TestResetForgetsEverything(t *testing.T) {
	f := marked()
	f.Reset()
	if f.Len() != 0 || len(f.Bytes()) != 0 {
		t.Errorf("%d bytes after Reset", f.Len())
	}
	if f.VNet != (VNet{}) || f.Peer != 0 || f.Hash != 0 || f.Drop != drop.None {
		t.Errorf("metadata after Reset: %+v peer %d hash %d drop %v", f.VNet, f.Peer, f.Hash, f.Drop)
	}
}

func TestSetCopiesAndForgetsMetadata(t *testing.T) {
	f := marked()
	b := []byte("other bytes")
	f.Set(b)
	b[0] = 'X'
	if string(f.Bytes()) != "other bytes" {
		t.Errorf("bytes %q", f.Bytes())
	}
	if f.VNet != (VNet{}) || f.Peer != 0 || f.Hash != 0 || f.Drop != drop.None {
		t.Error("Set kept metadata of the frame before")
	}
}

func TestCloneSharesNothing(t *testing.T) {
	f := marked()
	c := f.Clone()
	if !bytes.Equal(c.Bytes(), f.Bytes()) || c.VNet != f.VNet || c.Peer != f.Peer || c.Hash != f.Hash || c.Drop != f.Drop {
		t.Error("clone differs from its original")
	}
	f.Bytes()[0] ^= 0xff
	if bytes.Equal(c.Bytes(), f.Bytes()) {
		t.Error("clone shares its original's buffer")
	}
}

func TestHeadroomIsAdjacent(t *testing.T) {
	f := New()
	copy(f.SpaceWithHeadroom(VNetHeaderBytes), "0123456789frame")
	f.SetLen(5)
	if string(f.Bytes()) != "frame" {
		t.Errorf("bytes %q, want what lies behind the headroom asked for", f.Bytes())
	}
	if got := f.WithHeadroom(VNetHeaderBytes); string(got) != "0123456789frame" {
		t.Errorf("with headroom %q", got)
	}
	if got := f.WithHeadroom(HeadroomBytes); len(got) != HeadroomBytes+5 {
		t.Errorf("whole headroom: %d bytes", len(got))
	}
	if n := len(f.Space()); n < MaxBytes+1 {
		t.Errorf("space of %d bytes; a receive needs one more than MaxBytes to tell a frame cut off", n)
	}
}

func TestSetLenRefusesMoreThanAFrame(t *testing.T) {
	f := New()
	f.SetLen(MaxBytes)
	if f.Len() != MaxBytes {
		t.Errorf("length %d, want %d", f.Len(), MaxBytes)
	}
	for _, n := range []int{MaxBytes + 1, -1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("SetLen(%d) did not panic", n)
				}
			}()
			f.SetLen(n)
		}()
	}
}

func TestBatchHoldsOnlyWhatWasKept(t *testing.T) {
	b := NewBatch(2)
	b.Next().Set([]byte("not kept"))
	if b.Len() != 0 {
		t.Fatal("a frame is in the batch before Keep")
	}
	f := b.Next()
	if f.Len() != 0 {
		t.Error("Next returned a frame that was not reset")
	}
	f.Set([]byte("first"))
	b.Keep()
	b.Next().Set([]byte("second"))
	b.Keep()
	if b.Len() != 2 || string(b.At(0).Bytes()) != "first" || string(b.At(1).Bytes()) != "second" {
		t.Errorf("batch of %d: %q %q", b.Len(), b.At(0).Bytes(), b.At(1).Bytes())
	}
	if b.Next() != nil || !b.Full() {
		t.Error("a batch whose frames are all kept is not full")
	}
	b.Reset()
	if b.Len() != 0 || b.Full() || b.Next() == nil {
		t.Error("a batch after Reset is not empty")
	}
}

func TestBatchIsFullByBytes(t *testing.T) {
	b := NewBatch(BatchFrames)
	n := 0
	for !b.Full() {
		b.Next().SetLen(MaxBytes)
		b.Keep()
		n++
	}
	if want := (BatchBytes + MaxBytes - 1) / MaxBytes; n != want {
		t.Errorf("full after %d frames of %d bytes, want %d", n, MaxBytes, want)
	}
	if b.Next() == nil {
		t.Error("bytes count for Next; a caller with one frame more could not place it")
	}
	b.Reset()
	if b.Full() {
		t.Error("Reset kept the byte count")
	}
}

func TestBatchFramesDoNotOverlap(t *testing.T) {
	b := NewBatch(3)
	for i := range 3 {
		space := b.Next().SpaceWithHeadroom(HeadroomBytes)
		for j := range space {
			space[j] = byte(i + 1)
		}
		b.Next().SetLen(MaxBytes)
		b.Keep()
	}
	for i := range 3 {
		for _, c := range b.At(i).WithHeadroom(HeadroomBytes) {
			if c != byte(i+1) {
				t.Fatalf("frame %d holds a byte of frame %d", i, c-1)
			}
		}
	}
}

func TestReceivingIntoABatchAllocatesNothing(t *testing.T) {
	b := NewBatch(BatchFrames)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for !b.Full() {
			b.Next().SetLen(1514)
			b.Keep()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
