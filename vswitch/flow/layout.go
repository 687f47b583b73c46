package flow

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"unsafe"
)

// The mapping, all in host byte order and without pointers:
//
//	0            4096
//	+--------+---------+---------------+---------------+
//	| header | (empty) | records       | counters      |
//	|        |         | n x 128       | 2 x n x 16    |
//	+--------+---------+---------------+---------------+
//
// The rest of a table follows from its records, so whoever maps one that a killed
// process left makes it anew: the index, which records are free, how many
// connections an owner has. A record of even generation is void. No lock lies
// here, nor anything that means something to one process only, but for policy
// generations, which are the caller's.

const (
	magic         = "vswflow\n"
	layoutVersion = 2 // changes with any change of what is drawn here, of record, or of the hash
	headerBytes   = 4096
)

// header is the mapping's first page. It is written once.
type header struct {
	magic   [8]byte
	version uint32
	records uint32
	hashKey hashKey
}

var _ [headerBytes - unsafe.Sizeof(header{})]struct{}

// mappingBytes is the size of a mapping for n connections.
func mappingBytes(n int) int { return countersOffset(n) + 2*n*counterBytes }

func countersOffset(n int) int { return headerBytes + n*recordBytes }

// layout is a mapping's parts in place.
type layout struct {
	records  []record
	counters [2][]counter
	hashKey  hashKey // a copy
}

// format writes the header of an empty table over mem, which must be zero.
func format(mem []byte, connections int) {
	h := (*header)(unsafe.Pointer(unsafe.SliceData(mem)))
	*h = header{version: layoutVersion, records: uint32(connections)}
	copy(h.magic[:], magic)
	var key [unsafe.Sizeof(hashKey{})]byte
	rand.Read(key[:]) // never fails: crypto/rand ends the process where there is no entropy
	for i := range h.hashKey {
		h.hashKey[i] = binary.NativeEndian.Uint64(key[8*i:])
	}
}

// VersionError is the error of Open for a table of another layout. Its
// connections are lost to this process; the one that wrote it can read it still.
type VersionError struct {
	Got, Want uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("flow: the table has layout version %d, and this is version %d", e.Got, e.Want)
}

// connectionsOf checks a mapping's header against the mapping's size and gives
// the number of its records. It believes nothing else.
func connectionsOf(h *header, size int64) (int, error) {
	switch n := int64(h.records); {
	case string(h.magic[:]) != magic:
		return 0, fmt.Errorf("flow: not a flow table: it begins with %q", h.magic[:])
	case h.version != layoutVersion:
		return 0, &VersionError{Got: h.version, Want: layoutVersion}
	case n < 1 || n > MaxConnections:
		return 0, fmt.Errorf("flow: a table of %d connections, want 1 to %d", n, MaxConnections)
	case int64(mappingBytes(int(n))) != size:
		return 0, fmt.Errorf("flow: %d connections in %d bytes, want %d bytes", n, size, mappingBytes(int(n)))
	}
	return int(h.records), nil
}

// attach finds a table's parts in mem.
func attach(mem []byte) (layout, error) {
	if len(mem) < headerBytes {
		return layout{}, fmt.Errorf("flow: a mapping of %d bytes has no header", len(mem))
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	h := (*header)(base)
	n, err := connectionsOf(h, int64(len(mem)))
	if err != nil {
		return layout{}, err
	}
	counters := unsafe.Slice((*counter)(unsafe.Add(base, countersOffset(n))), 2*n)
	return layout{
		records:  unsafe.Slice((*record)(unsafe.Add(base, headerBytes)), n),
		counters: [2][]counter{counters[:n], counters[n:]},
		hashKey:  h.hashKey,
	}, nil
}
