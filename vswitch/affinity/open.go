package affinity

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"vswitch/internal/lasting"
)

// The memory: a page of header, then the sets.

const (
	magic         = "vswaffi\n"
	layoutVersion = 1 // changes with record, the hash, the number of sets, and the length of a tick
	headerBytes   = 4096
	memoryBytes   = headerBytes + sets*ways*recordBytes
)

// header is the first page. It is written once.
type header struct {
	magic   [8]byte
	version uint32
	_       uint32
	key     hashKey
}

var _ [headerBytes - unsafe.Sizeof(header{})]struct{}

// Report says what Open found in a memory that another process left.
type Report struct {
	Kept      int // clients
	Discarded int // records that were not whole
}

// New makes an empty memory that nothing but its descriptor leads to.
func New() (*Memory, error) {
	l, err := lasting.New("vswitch-affinity", memoryBytes)
	if err != nil {
		return nil, fmt.Errorf("affinity: %w", err)
	}
	return format(l), nil
}

// Create makes an empty memory in fd, a file as lasting.Create takes it. It takes fd if
// it succeeds.
func Create(fd int) (*Memory, error) {
	l, err := lasting.Create(fd, memoryBytes)
	if err != nil {
		return nil, fmt.Errorf("affinity: make a memory of %d bytes in a file: %w", memoryBytes, err)
	}
	return format(l), nil
}

// format writes the header of an empty memory over l, which must be zero.
func format(l *lasting.Memory) *Memory {
	h := headerOf(l)
	h.version = layoutVersion
	copy(h.magic[:], magic)
	var random [unsafe.Sizeof(hashKey{})]byte
	rand.Read(random[:]) // never fails: crypto/rand ends the process where there is no entropy
	for i := range h.key {
		h.key[i] = binary.NativeEndian.Uint64(random[8*i:])
	}
	return over(l)
}

// Open maps the memory in fd, which New or Create made in another process. That process
// has closed it or is dead, killed at any moment; while it lives and has not, Open fails
// (lasting.ErrInUse). now is the tick. It takes fd if it succeeds.
//
// Every client that Choose remembered is there, but for those whose records were being
// written or were damaged since. Nothing else is believed.
func Open(fd int, now uint32) (*Memory, Report, error) {
	l, err := lasting.Open(fd, memoryBytes, memoryBytes)
	if err != nil {
		return nil, Report{}, fmt.Errorf("affinity: open the memory in descriptor %d: %w", fd, err)
	}
	if h := headerOf(l); string(h.magic[:]) != magic || h.version != layoutVersion {
		err := fmt.Errorf("affinity: descriptor %d begins with %q, version %d; want %q, version %d", fd, h.magic[:], h.version, magic, layoutVersion)
		return nil, Report{}, errors.Join(err, l.GiveBack())
	}
	m := over(l)
	return m, m.restore(now), nil
}

func headerOf(l *lasting.Memory) *header { return (*header)(unsafe.Pointer(unsafe.SliceData(l.Bytes))) }

func over(l *lasting.Memory) *Memory {
	first := unsafe.Pointer(unsafe.SliceData(l.Bytes[headerBytes:]))
	return &Memory{memory: l, sets: unsafe.Slice((*set)(first), sets), key: headerOf(l).key}
}

// restore makes the records that are not whole nobody's. Times that lie ahead of now become now.
func (m *Memory) restore(now uint32) (report Report) {
	for _, part := range m.memory.Written(headerBytes) {
		first, end := (part[0]-headerBytes)/recordBytes, (part[1]-headerBytes+recordBytes-1)/recordBytes
		for i := first; i < min(end, sets*ways); i++ {
			r := &m.sets[i/ways][i%ways]
			switch {
			case *r == record{}:
			case r.check != m.key.check(r) || m.key.hash(&r.key)%sets != uint64(i/ways):
				*r = record{}
				report.Discarded++
			default:
				if int32(now-r.used) < 0 {
					r.used = now
				}
				report.Kept++
			}
		}
	}
	return report
}

// FD is the descriptor of the memory, for whoever is to keep it beyond this process's
// life. It is the memory's: Close closes it.
func (m *Memory) FD() int { return m.memory.FD() }

// Close lets go of the memory. Nothing may use it at that time or later. What it knows
// lives on while another descriptor of it does, or its file.
func (m *Memory) Close() error {
	if m.memory == nil {
		return nil
	}
	err := m.memory.Close()
	m.memory, m.sets = nil, nil
	return err
}
