package traffic

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Steady traffic is what a user of a network has while it is restarted: TCP
// connections at a given rate and numbered datagrams at a given rate, for as long as
// it takes. A Witness at the other end says what became of each: whether a
// connection ended, which datagrams never came, and when nothing came for a while.

const (
	// steadyTick is the time between two writes: short, so that a stall of a few
	// milliseconds shows.
	steadyTick = time.Millisecond
	// gapMin is the shortest silence that is noted. A busy machine's scheduler makes
	// shorter ones by itself.
	gapMin = 5 * time.Millisecond
	// steadyDatagramBytes is number and padding.
	steadyDatagramBytes = 200
	// steadyPatience is how long a connection may take to end in order.
	steadyPatience = 10 * time.Second
	// lastDatagrams is how long a witness waits for what is still on its way.
	lastDatagrams = 300 * time.Millisecond
)

// Steady is what became of steady traffic, at either end.
type Steady struct {
	// Connections that were made, and those that ended before they should.
	Connections int      `json:"connections"`
	Broken      []string `json:"broken,omitempty"`
	Bytes       uint64   `json:"bytes"`
	// Datagrams sent, or received, each counted once.
	Datagrams  uint64 `json:"datagrams"`
	Duplicates uint64 `json:"duplicates,omitempty"`
	// Gaps of a witness: silences on one connection, or between datagrams.
	Gaps []Gap `json:"gaps,omitempty"`
}

// SteadyIn finds the report of steady traffic in what a process of Commands printed.
func SteadyIn(output string) (*Steady, error) {
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var r Report
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, err
		}
		if r.Steady != nil {
			return r.Steady, nil
		}
	}
	return nil, errors.New("no report of steady traffic")
}

// Gap is a silence.
type Gap struct {
	Protocol Protocol      `json:"protocol"`
	At       time.Time     `json:"at"` // its end
	Length   time.Duration `json:"lengthNs"`
}

// Steady sends bitsPerSecond over connections in equal shares and packetsPerSecond
// datagrams until ctx ends. A connection that breaks is no error: it is counted.
func (c *Client) Steady(ctx context.Context, connections int, bitsPerSecond, packetsPerSecond float64) (*Report, error) {
	var mu sync.Mutex
	s := &Steady{}
	var wg sync.WaitGroup
	for i := range connections {
		conn, err := net.Dial("tcp", c.To.String())
		if err != nil {
			return nil, err
		}
		s.Connections++
		wg.Go(func() {
			n, err := sendSteadily(ctx, conn, bitsPerSecond/8/float64(connections))
			mu.Lock()
			defer mu.Unlock()
			s.Bytes += n
			if err != nil {
				s.Broken = append(s.Broken, fmt.Sprintf("connection %d: %v", i+1, err))
			}
		})
	}
	udp, err := net.Dial("udp", c.To.String())
	if err != nil {
		return nil, err
	}
	defer udp.Close()
	payload := make([]byte, steadyDatagramBytes)
	for due := range paced(ctx, packetsPerSecond) {
		for range due {
			binary.BigEndian.PutUint64(payload, s.Datagrams)
			// What an earlier one met (ECONNREFUSED, say) is the witness's to notice.
			if _, err := udp.Write(payload); err == nil {
				s.Datagrams++
			}
		}
	}
	wg.Wait()
	return &Report{Steady: s}, nil
}

// sendSteadily writes bytesPerSecond until ctx ends, then ends the connection in
// order and waits for the other side to do so.
func sendSteadily(ctx context.Context, conn net.Conn, bytesPerSecond float64) (sent uint64, err error) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now().Add(steadyPatience)) })()
	chunk := make([]byte, 64<<10)
	for due := range paced(ctx, bytesPerSecond) {
		for due > 0 {
			n, err := conn.Write(chunk[:min(due, len(chunk))])
			sent += uint64(n)
			due -= n
			if err != nil {
				return sent, err
			}
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return sent, err
	}
	_, err = io.Copy(io.Discard, conn)
	return sent, err
}

// paced yields, once a tick until ctx ends, how many are due to keep up a rate.
func paced(ctx context.Context, perSecond float64) func(func(int) bool) {
	return func(yield func(int) bool) {
		tick := time.NewTicker(steadyTick)
		defer tick.Stop()
		done, begin := 0, time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			due := int(time.Since(begin).Seconds()*perSecond) - done
			// After a stall it does not make up for what was not sent: it is a rate.
			limit := int(20 * steadyTick.Seconds() * perSecond)
			if due > limit {
				done += due - limit
				due = limit
			}
			done += due
			if due > 0 && !yield(due) {
				return
			}
		}
	}
}

// Witness receives steady traffic.
type Witness struct {
	tcp *net.TCPListener
	udp *net.UDPConn

	mu     sync.Mutex
	report Steady // guarded by mu
}

// ListenWitness opens a witness, TCP and UDP.
func ListenWitness(at netip.AddrPort) (*Witness, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	_ = u.SetReadBuffer(bufferBytes) // as far as the system allows
	return &Witness{tcp: l, udp: u}, nil
}

// Serve watches until ctx ends and the last connection has, and reports.
func (w *Witness) Serve(ctx context.Context) (*Report, error) {
	var wg sync.WaitGroup
	defer context.AfterFunc(ctx, func() {
		w.tcp.Close()
		w.udp.SetReadDeadline(time.Now().Add(lastDatagrams))
	})()
	wg.Go(w.datagrams)
	for {
		conn, err := w.tcp.Accept()
		if err != nil {
			break
		}
		wg.Go(func() { w.connection(conn) })
	}
	wg.Wait()
	w.udp.Close()
	return &Report{Steady: &w.report}, nil
}

func (w *Witness) connection(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 256<<10)
	var bytes uint64
	last := time.Time{}
	var err error
	for err == nil {
		var n int
		n, err = conn.Read(buf)
		bytes += uint64(n)
		if n > 0 {
			last = w.noteGap(TCP, last)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Connections++
	w.report.Bytes += bytes
	if err != io.EOF {
		w.report.Broken = append(w.report.Broken, err.Error())
	}
}

func (w *Witness) datagrams() {
	seen := map[uint64]bool{}
	buf := make([]byte, 2048)
	last := time.Time{}
	var duplicates uint64
	for {
		n, err := w.udp.Read(buf)
		if err != nil {
			break
		}
		last = w.noteGap(UDP, last)
		if n >= 8 {
			number := binary.BigEndian.Uint64(buf)
			if seen[number] {
				duplicates++
			}
			seen[number] = true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Datagrams, w.report.Duplicates = uint64(len(seen)), duplicates
}

// noteGap records the silence since last, if it was one, and returns the present.
func (w *Witness) noteGap(p Protocol, last time.Time) time.Time {
	now := time.Now()
	if last.IsZero() || now.Sub(last) < gapMin {
		return now
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Gaps = append(w.report.Gaps, Gap{p, now, now.Sub(last)})
	return now
}
