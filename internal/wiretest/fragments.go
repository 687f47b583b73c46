package wiretest

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Fragments cuts a frame's IP packet into fragments with at most pieceBytes of
// payload each, a multiple of eight (RFC 791 section 3.2, RFC 8200 section 4.5). It
// expects an IPv4 header without options, or an IPv6 header; extensions, IPv6
// only, is a chain of Destination Options headers of eight bytes each that go behind
// the Fragment header.
func Fragments(b []byte, id uint32, pieceBytes int, extensions int) [][]byte {
	var out [][]byte
	if b[12] == 0x08 {
		payload := b[34 : 14+int(binary.BigEndian.Uint16(b[16:]))]
		for at := 0; at < len(payload); at += pieceBytes {
			end := min(at+pieceBytes, len(payload))
			f := slices.Concat(b[:34], payload[at:end])
			binary.BigEndian.PutUint16(f[16:], uint16(20+end-at))
			binary.BigEndian.PutUint16(f[18:], uint16(id))
			field := uint16(at / 8)
			if end < len(payload) {
				field |= 0x2000
			}
			binary.BigEndian.PutUint16(f[20:], field)
			f[24], f[25] = 0, 0
			binary.BigEndian.PutUint16(f[24:], ^Sum16(f[14:34]))
			out = append(out, f)
		}
		return out
	}
	next := b[20]
	payload := b[54 : 54+int(binary.BigEndian.Uint16(b[18:]))]
	for range extensions {
		payload = slices.Concat([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload) // PadN
		next = 60
	}
	for at := 0; at < len(payload); at += pieceBytes {
		end := min(at+pieceBytes, len(payload))
		header := make([]byte, 8)
		header[0] = next
		field := uint16(at)
		if end < len(payload) {
			field |= 1
		}
		binary.BigEndian.PutUint16(header[2:], field)
		binary.BigEndian.PutUint32(header[4:], id)
		f := slices.Concat(b[:54], header, payload[at:end])
		f[20] = 44
		binary.BigEndian.PutUint16(f[18:], uint16(8+end-at))
		out = append(out, f)
	}
	return out
}

// Reassemble puts the fragments of one datagram together again, in any order and
// with duplicates, as a frame without Fragment header and Destination Options. It
// is an error when they overlap with different bytes, leave a gap, or differ in
// addresses or identification.
func Reassemble(fragments [][]byte) ([]byte, error) {
	payload, have := []byte(nil), []bool(nil)
	total := -1
	var identity []byte
	var next byte
	for i, f := range fragments {
		v6 := f[12] == 0x86
		var id, data []byte
		var offset int
		var more bool
		if v6 {
			if f[20] != 44 {
				return nil, fmt.Errorf("fragment %d has no fragment header", i)
			}
			field := binary.BigEndian.Uint16(f[56:])
			offset, more = int(field&^7), field&1 != 0
			id, data = slices.Concat(f[22:54], f[58:62]), f[62:54+int(binary.BigEndian.Uint16(f[18:]))]
			next = f[54]
		} else {
			field := binary.BigEndian.Uint16(f[20:])
			offset, more = int(field&0x1fff)*8, field&0x2000 != 0
			headerBytes := int(f[14]&15) * 4
			if Sum16(f[14:14+headerBytes]) != 0xffff {
				return nil, fmt.Errorf("fragment %d has a wrong header checksum", i)
			}
			id, data = slices.Concat(f[26:34], f[18:20], f[23:24]), f[14+headerBytes:14+int(binary.BigEndian.Uint16(f[16:]))]
		}
		if identity == nil {
			identity = id
		}
		if string(identity) != string(id) {
			return nil, fmt.Errorf("fragment %d is of another datagram: %x, not %x", i, id, identity)
		}
		if !more {
			total = offset + len(data)
		}
		for k, c := range data {
			at := offset + k
			for len(payload) <= at {
				payload, have = append(payload, 0), append(have, false)
			}
			if have[at] && payload[at] != c {
				return nil, fmt.Errorf("fragment %d overlaps with other bytes at %d", i, at)
			}
			payload[at], have[at] = c, true
		}
	}
	if total < 0 || len(payload) != total || slices.Contains(have, false) {
		return nil, fmt.Errorf("incomplete: %d of %d bytes", len(payload), total)
	}
	f := slices.Clone(fragments[0])
	if f[12] == 0x86 {
		for next == 60 {
			next, payload = payload[0], payload[(int(payload[1])+1)*8:]
		}
		f = append(f[:54], payload...)
		f[20] = next
		binary.BigEndian.PutUint16(f[18:], uint16(len(payload)))
		return f, nil
	}
	f = append(f[:34], payload...)
	f[14] = 0x45
	binary.BigEndian.PutUint16(f[16:], uint16(20+len(payload)))
	f[20], f[21], f[24], f[25] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(f[24:], ^Sum16(f[14:34]))
	return f, nil
}
