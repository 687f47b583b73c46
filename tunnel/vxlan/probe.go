//go:build linux

package vxlan

import (
	"encoding/binary"
	"hash/crc32"
	"sync/atomic"
	"time"

	"vswitch/tunnel/udp"
	"vswitch/vswitch/drop"
)

// A probe is a datagram of the offload governor's (governor.go) on the tunnel's
// port; the member that it reaches answers whether it came as it was sent.
//
//	 0               8               16              24              32
//	+-+-+-+-+-+-+-+-+---------------+---------------+---------------+
//	|0 0 0 0 0 0 0 0|  0x76         | kind          | index         |
//	+---------------+---------------+---------------+---------------+
//	| nonce of the round                                            |
//	+---------------------------------------------------------------+
//	| CRC-32C of the datagram, this field taken as zero             |
//	+---------------------------------------------------------------+
//	| fill, in a probe                                              |
//
// The first octet is VXLAN's flags with I clear, which every VXLAN end point
// must drop (RFC 7348 section 5): what does not know probes takes no harm. Only
// members known by address and port, which are vswitch nodes, are asked and answered.
// An answer is shorter than any probe, so that a forged sender gains nothing.
const (
	probeMark        = 0x76
	probeHeaderBytes = 12
	minProbeBytes    = 64

	probeAsks    = 1
	probeIntact  = 2 // answers: as it was sent,
	probeDamaged = 3 // or with a wrong checksum

	// answersPerSecond bounds what one member may ask; a series of the governor's is 128 at most.
	answersPerSecond = 200
)

// An answer must not be an amplifier.
const _ = uint(minProbeBytes - probeHeaderBytes - 1)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// probe is a probe's header.
type probe struct {
	kind, index uint8
	nonce       uint32
}

// seal writes the header into b, whose fill is in place; b has probeHeaderBytes or more.
func (p probe) seal(b []byte) {
	b[0], b[1], b[2], b[3] = 0, probeMark, p.kind, p.index
	binary.BigEndian.PutUint32(b[4:], p.nonce)
	binary.BigEndian.PutUint32(b[8:], probeSum(b))
}

// parseProbe reads a datagram that is no VXLAN; ok is false where it is no probe
// either, and intact where its checksum is right.
func parseProbe(b []byte) (p probe, intact, ok bool) {
	if len(b) < probeHeaderBytes || b[0] != 0 || b[1] != probeMark {
		return p, false, false
	}
	p = probe{kind: b[2], index: b[3], nonce: binary.BigEndian.Uint32(b[4:])}
	return p, binary.BigEndian.Uint32(b[8:]) == probeSum(b), true
}

func probeSum(b []byte) uint32 {
	const field = 8
	crc := crc32.Update(0, castagnoli, b[:field])
	crc = crc32.Update(crc, castagnoli, zeroSum[:])
	return crc32.Update(crc, castagnoli, b[probeHeaderBytes:])
}

var zeroSum [probeHeaderBytes - 8]byte

// answerBudget counts answers to a member by the second. Several workers may share one, and then
// lose count of a few.
type answerBudget struct {
	second atomic.Int64
	given  atomic.Int32
}

func (a *answerBudget) allow(second int64) bool {
	if a.second.Swap(second) != second {
		a.given.Store(0)
	}
	return a.given.Add(1) <= answersPerSecond
}

// takeProbe deals with a datagram that is no VXLAN, from member m, and reports
// drop.None where it was a probe or an answer to one. It is off the frames' path.
func (q *Queue) takeProbe(data []byte, msg *udp.Message, m *member) drop.Reason {
	p, intact, ok := parseProbe(data)
	if !ok || m.AnyPort {
		return drop.NotVXLAN
	}
	switch {
	case p.kind == probeAsks && len(data) >= minProbeBytes:
		answer := probe{kind: probeIntact, index: p.index, nonce: p.nonce}
		if !intact {
			answer.kind = probeDamaged
		}
		if m.answers.allow(time.Now().Unix()) {
			q.answerProbe(answer, msg.From, m)
		}
		return drop.None
	case !intact:
		return drop.BadChecksum
	case p.kind == probeIntact || p.kind == probeDamaged:
		q.t.governor.answered(m.ID, p)
		return drop.None
	}
	return drop.NotVXLAN
}

// answerProbe sends an answer to the port that asked, by itself: it must arrive
// where trains do not.
func (q *Queue) answerProbe(p probe, to udp.Addr, m *member) {
	l := q.link(m.v6)
	if l == nil {
		return
	}
	for i, port := range m.Ports {
		if port == to.Port {
			l.conn.Flush()
			b := l.conn.Scratch(probeHeaderBytes)
			p.seal(b)
			l.conn.Stage(m.dests[i], 0, b, nil, &q.lostAnswer)
			l.conn.Flush()
		}
	}
}
