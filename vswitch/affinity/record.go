package affinity

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"vswitch/vswitch/flow"
)

// record is one client's endpoint, in host byte order.
type record struct {
	key   key
	addr  [2]uint64 // of the endpoint, as its id and port
	id    uint64
	used  uint32 // tick of the last flow; all that changes without the check word
	port  uint16
	_     uint16
	check uint64 // 0: nobody's
}

// set holds the records of the clients that one hash names.
type set [ways]record

const recordBytes = int(unsafe.Sizeof(record{}))

// A record is a cache line.
var (
	_ [recordBytes - 64]struct{}
	_ [64 - recordBytes]struct{}
)

func (r *record) endpoint() flow.Endpoint {
	e := flow.Endpoint{ID: r.id, Port: r.port}
	binary.NativeEndian.PutUint64(e.Addr[:8], r.addr[0])
	binary.NativeEndian.PutUint64(e.Addr[8:], r.addr[1])
	return e
}

// expired reports whether a client has been away for longer than the timeout, by
// up to a tick. Workers may read the clock out of order.
func (r *record) expired(now, timeout uint32) bool {
	away := int32(now - r.used)
	return away > 0 && uint32(away) > timeout
}

// find is a client's record; nil: it has none.
func (s *set) find(k *key) *record {
	for i := range s {
		if r := &s[i]; r.key == *k && r.check != 0 {
			return r
		}
	}
	return nil
}

// victim is the record to use for another client: one that is nobody's, or of the service
// that has most of them the one that was not used for longest.
func (s *set) victim() *record {
	var out *record
	most := 0
	for i := range s {
		r := &s[i]
		if r.check == 0 {
			return r
		}
		n := 0
		for j := range s {
			if s[j].key.service == r.key.service {
				n++
			}
		}
		if n > most || n == most && int32(r.used-out.used) < 0 {
			out, most = r, n
		}
	}
	return out
}

// hashKey is random, and lies in the memory's header so that whoever maps it again finds
// the same records in the same sets.
type hashKey [16]uint64

// hash maps a client to 64 bits that nobody without the key can aim. It is NH (UMAC,
// CRYPTO 1999, section 4), as the flow table's: see flow.Table.Hash.
func (h *hashKey) hash(k *key) uint64 {
	var sum nh
	sum.add(k.addr[0]+h[0], k.addr[1]+h[1])
	sum.add(k.service+h[2], h[3])
	return sum.fold(h[4], h[5])
}

// check is the check word of a record: never 0.
func (h *hashKey) check(r *record) uint64 {
	var sum nh
	sum.add(r.key.service+h[6], r.key.addr[0]+h[7])
	sum.add(r.key.addr[1]+h[8], r.addr[0]+h[9])
	sum.add(r.addr[1]+h[10], r.id+h[11])
	sum.add(uint64(r.port)+h[12], h[13])
	return sum.fold(h[14], h[15]) | 1
}

// nh is a sum of products in 128 bits.
type nh struct{ hi, lo uint64 }

func (s *nh) add(a, b uint64) {
	hi, lo := bits.Mul64(a, b)
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

func (s *nh) fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(s.hi^a, s.lo^b)
	return hi ^ lo
}
