// Package traffic is a small server and a client that measures against it, over
// ordinary kernel sockets: round trips, bulk transfer, and who answered whom.
//
// The demo and the benchmarks run each side as a process of its own, through
// Commands, inside the namespace it stands for. It knows nothing of vswitch.
//
// # Protocol
//
// On TCP a connection begins with a line that says what it is for:
//
//	who    the server answers "NAME CLIENT-ADDRESS" and closes
//	echo   the server sends back what it gets
//	sink   the server reads to the end, answers "BYTES CRC32C" and closes
//
// On UDP a datagram begins with a byte (the same three as 'w', 'e', 's', and
// 'q' for what a sink got) and eight bytes that name the session.
//
// Where that costs more than what is measured there are two pairs without a
// protocol: `load flood` and `sink`, `load connections` and `accept`. For programs
// that know nothing of either there is `hello`.
package traffic

import (
	"fmt"
	"hash/crc32"
	"math"
	"net/netip"
	"slices"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// udpHeaderBytes precede a datagram's payload: kind and session.
const udpHeaderBytes = 1 + 8

// Report is what a client measured.
type Report struct {
	// RTT of small messages, one at a time.
	RTT *RTT `json:"rtt,omitempty"`
	// Bulk transfer from client to server.
	Bulk *Bulk `json:"bulk,omitempty"`
	// Connections made and closed again.
	Connections *Connections `json:"connections,omitempty"`
	// Steady traffic and what became of it.
	Steady *Steady `json:"steady,omitempty"`
	// Answers counts new connections by who answered them.
	Answers []Answer `json:"answers,omitempty"`
}

// Answer is a server and whom it took the client for.
type Answer struct {
	Server string     `json:"server"` // its name
	Client netip.Addr `json:"client"` // the source address it saw
	Count  int        `json:"count"`
}

// Servers counts the answers by server.
func (r *Report) Servers() map[string]int {
	count := map[string]int{}
	for _, a := range r.Answers {
		count[a.Server] += a.Count
	}
	return count
}

// RTT is the distribution of round trips that were answered.
type RTT struct {
	Count int           `json:"count"`
	Lost  int           `json:"lost"`
	Min   time.Duration `json:"minNs"`
	P50   time.Duration `json:"p50Ns"`
	P90   time.Duration `json:"p90Ns"`
	P99   time.Duration `json:"p99Ns"`
	P999  time.Duration `json:"p999Ns"`
	Max   time.Duration `json:"maxNs"`
}

// Bulk is what arrived, and how fast.
type Bulk struct {
	Bytes   uint64        `json:"bytes"`
	Elapsed time.Duration `json:"elapsedNs"`
	// BitsPerSecond delivered, of payload.
	BitsPerSecond float64 `json:"bitsPerSecond"`
	// Sent counts datagrams sent, Received those that arrived, or, at a sink that
	// takes them joined, those it was given; zero for TCP.
	Sent     uint64 `json:"sent,omitempty"`
	Received uint64 `json:"received,omitempty"`
}

// newRTT sorts samples in place.
func newRTT(samples []time.Duration, lost int) (*RTT, error) {
	if len(samples) == 0 {
		return nil, fmt.Errorf("none of %d messages was answered", lost)
	}
	slices.Sort(samples)
	return &RTT{
		Count: len(samples), Lost: lost,
		Min: samples[0], P50: percentile(samples, 50), P90: percentile(samples, 90),
		P99: percentile(samples, 99), P999: percentile(samples, 99.9), Max: samples[len(samples)-1],
	}, nil
}

// percentile is the nearest-rank percentile of sorted samples: the smallest of
// them that at least p per cent do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func newBulk(bytes uint64, elapsed time.Duration) *Bulk {
	return &Bulk{Bytes: bytes, Elapsed: elapsed, BitsPerSecond: float64(bytes) * 8 / elapsed.Seconds()}
}
