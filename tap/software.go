package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vswitch/internal/offload"
	"vswitch/internal/wire"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/frame"
)

// software is what a queue needs to do the offloads that its device lacks: all of
// them on a plain TAP, UDP segmentation on one whose kernel predates it.
type software struct {
	segments offload.Segments
	iov      [2]unix.Iovec
	// head is an empty virtio-net header and room for a segment's headers.
	head [frame.VNetHeaderBytes + offload.MaxHeaderBytes]byte
}

// needsSoftware reports whether the kernel would not take the frame with this
// metadata. TCP and checksum offload need only the header on the way in, whatever
// TUNSETOFFLOAD says of the way out; UDP super-frames came with the flag.
func (q *Queue) needsSoftware(v *frame.VNet) bool {
	if q.headroom == 0 {
		return v.IsGSO() || v.Flags&frame.NeedsCsum != 0
	}
	return v.GSOType.Kind() == frame.GSOUDPL4 && !q.features.Has(USO)
}

// transmitSoftware completes or segments f and writes what results. Of a
// super-frame the segments before one that fails have been sent.
func (q *Queue) transmitSoftware(f *frame.Frame) drop.Reason {
	var h wire.Headers
	if r := wire.Parse(f.Bytes(), &h); r != drop.None {
		return r
	}
	if !f.VNet.IsGSO() {
		if r := offload.CompleteParsed(f, &h); r != drop.None {
			return r
		}
		return q.write(f.Bytes()) // only a plain device comes here: no header
	}
	s := &q.software.segments
	if r := s.Reset(f, &h); r != drop.None {
		return r
	}
	head := q.software.head[frame.VNetHeaderBytes-q.headroom : frame.VNetHeaderBytes+s.HeaderBytes()]
	for i := range s.Len() {
		payload := s.At(i, head[q.headroom:])
		if r := q.writeGather(head, payload); r != drop.None {
			return r
		}
	}
	return drop.None
}

// writeGather sends one frame that lies in two pieces.
func (q *Queue) writeGather(head, payload []byte) drop.Reason {
	iov := &q.software.iov
	iov[0].Base = unsafe.SliceData(head)
	iov[0].SetLen(len(head))
	iov[1].Base = unsafe.SliceData(payload)
	iov[1].SetLen(len(payload))
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(iov)), uintptr(len(iov)))
		if errno != unix.EINTR {
			return transmitReason(errno)
		}
	}
}
