package traffic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol of a measurement.
type Protocol string

const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	Ping Protocol = "ping" // ICMP echo, round trips only
)

// answerTimeout is how long a client waits for one answer.
const answerTimeout = time.Second

// Client measures against a Server at To, or, for Ping, any host.
type Client struct {
	Protocol Protocol
	To       netip.AddrPort
	// SizeBytes of a message's payload; 0: 64 for round trips, 1200 for
	// datagrams in bulk (which fits the MTU of any tunnel), 128 KiB for TCP writes.
	SizeBytes int
	// FirstContact is how long to try to be answered at all before measuring;
	// 0: one attempt.
	FirstContact time.Duration
}

// RTT measures round trips, one at a time: count of them, and as many more as
// fit in duration.
func (c *Client) RTT(ctx context.Context, count int, duration time.Duration) (*Report, error) {
	size := c.SizeBytes
	if size == 0 {
		size = 64
	}
	var e echoer
	err := c.contact(ctx, func() (err error) {
		if e, err = c.openEcho(); err != nil {
			return err
		}
		if err = e.echo(0, size); err != nil {
			e.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer e.Close()

	var samples []time.Duration
	lost := 0
	begin := time.Now()
	for i := 1; i <= count || time.Since(begin) < duration; i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		switch err := e.echo(uint64(i), size); {
		case err == nil:
			samples = append(samples, time.Since(start))
		case c.Protocol != TCP && errors.Is(err, errTimeout):
			lost++
		default:
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
	}
	rtt, err := newRTT(samples, lost)
	return &Report{RTT: rtt}, err
}

// Who makes count new connections, or UDP flows, and counts who answered them.
func (c *Client) Who(ctx context.Context, count int) (*Report, error) {
	r := &Report{}
	for i := range count {
		var said string
		ask := func() (err error) {
			said, err = c.who()
			return err
		}
		var err error
		if i == 0 {
			err = c.contact(ctx, ask)
		} else {
			err = ask()
		}
		if err != nil {
			return nil, fmt.Errorf("connection %d: %w", i+1, err)
		}
		server, seen, _ := strings.Cut(strings.TrimSpace(said), " ")
		client, err := netip.ParseAddr(seen)
		if err != nil {
			return nil, fmt.Errorf("the server said %q, which is no name and address", said)
		}
		r.count(server, client)
	}
	return r, nil
}

func (r *Report) count(server string, client netip.Addr) {
	for i := range r.Answers {
		if a := &r.Answers[i]; a.Server == server && a.Client == client {
			a.Count++
			return
		}
	}
	r.Answers = append(r.Answers, Answer{Server: server, Client: client, Count: 1})
}

// Bulk sends as fast as it can for duration and counts what arrives.
func (c *Client) Bulk(ctx context.Context, duration time.Duration) (*Report, error) {
	switch c.Protocol {
	case TCP:
		return c.bulkTCP(ctx, duration)
	case UDP:
		return c.bulkUDP(ctx, duration)
	}
	return nil, fmt.Errorf("no bulk transfer over %s", c.Protocol)
}

// contact tries until it gets an answer or FirstContact has passed: a service
// applied a moment ago may not be there yet.
func (c *Client) contact(ctx context.Context, try func() error) error {
	deadline := time.Now().Add(c.FirstContact)
	for {
		err := try()
		if err == nil || ctx.Err() != nil || !time.Now().Before(deadline) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (c *Client) dialTCP(purpose string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", c.To.String(), answerTimeout)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(conn, purpose); err != nil {
		conn.Close()
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (c *Client) who() (string, error) {
	if c.Protocol == TCP {
		conn, err := c.dialTCP("who")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(answerTimeout))
		return bufio.NewReader(conn).ReadString('\n')
	}
	u, err := c.openUDP()
	if err != nil {
		return "", err
	}
	defer u.Close()
	answer, err := u.ask('w', nil)
	return string(answer), err
}

func (c *Client) bulkTCP(ctx context.Context, duration time.Duration) (*Report, error) {
	var conn *net.TCPConn
	err := c.contact(ctx, func() (err error) {
		conn, err = c.dialTCP("sink")
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	size := c.SizeBytes
	if size == 0 {
		size = 128 << 10
	}
	block := randomBytes(size)
	conn.SetDeadline(time.Now().Add(duration + 10*time.Second))
	sum, sent := uint32(0), uint64(0)
	begin := time.Now()
	for time.Since(begin) < duration && ctx.Err() == nil {
		n, err := conn.Write(block)
		if err != nil {
			return nil, err
		}
		sum = crc32.Update(sum, castagnoli, block[:n])
		sent += uint64(n)
	}
	if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	var got uint64
	var gotSum uint32
	if _, err := fmt.Fscan(conn, &got, &gotSum); err != nil {
		return nil, fmt.Errorf("the server's count: %w", err)
	}
	elapsed := time.Since(begin) // up to the answer: everything has arrived
	if got != sent || gotSum != sum {
		return nil, fmt.Errorf("sent %d bytes with CRC %08x, %d with CRC %08x arrived", sent, sum, got, gotSum)
	}
	return &Report{Bulk: newBulk(sent, elapsed)}, nil
}

func (c *Client) bulkUDP(ctx context.Context, duration time.Duration) (*Report, error) {
	u, err := c.openUDP()
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if err := c.contact(ctx, func() error { return u.echo(0, 64) }); err != nil {
		return nil, err
	}
	size := c.SizeBytes
	if size == 0 {
		size = 1200
	}
	datagram := u.message('s', randomBytes(max(size-udpHeaderBytes, 0)))
	sent := uint64(0)
	begin := time.Now()
	for time.Since(begin) < duration && ctx.Err() == nil {
		// Sixteen between two looks at the clock.
		for range 16 {
			if _, err := u.conn.Write(datagram); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return nil, err
			}
			sent++
		}
	}
	elapsed := time.Since(begin)
	// What is still queued on the way arrives before the question does, or is
	// lost to it; a question lost in the same queue is asked again.
	var answer []byte
	for range 5 {
		if answer, err = u.ask('q', nil); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the server's count: %w", err)
	}
	if len(answer) != 16 {
		return nil, fmt.Errorf("the server's count has %d bytes", len(answer))
	}
	received, size64 := binary.BigEndian.Uint64(answer), binary.BigEndian.Uint64(answer[8:])
	if received == 0 {
		return nil, fmt.Errorf("none of %d datagrams arrived", sent)
	}
	b := newBulk(size64, elapsed)
	b.Sent, b.Received = sent, received
	return &Report{Bulk: b}, nil
}

// echoer sends one message and waits for it to come back.
type echoer interface {
	// echo sends message number i; it returns errTimeout when no answer comes.
	echo(i uint64, size int) error
	Close() error
}

var errTimeout = errors.New("no answer within a second")

func (c *Client) openEcho() (echoer, error) {
	switch c.Protocol {
	case TCP:
		conn, err := c.dialTCP("echo")
		if err != nil {
			return nil, err
		}
		return &tcpEcho{TCPConn: conn}, nil
	case UDP:
		return c.openUDP()
	case Ping:
		return openPing(c.To.Addr())
	}
	return nil, fmt.Errorf("protocol %q is none of tcp, udp, ping", c.Protocol)
}

type tcpEcho struct {
	*net.TCPConn
	out, in []byte
}

func (t *tcpEcho) echo(i uint64, size int) error {
	t.out, t.in = resize(t.out, max(size, 8)), resize(t.in, max(size, 8))
	binary.BigEndian.PutUint64(t.out, i)
	t.SetDeadline(time.Now().Add(answerTimeout))
	if _, err := t.Write(t.out); err != nil {
		return timeout(err)
	}
	for n := 0; n < len(t.in); {
		m, err := t.Read(t.in[n:])
		if err != nil {
			return timeout(err)
		}
		n += m
	}
	if !bytes.Equal(t.in, t.out) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

type udpClient struct {
	conn    *net.UDPConn
	session uint64
	in      []byte
}

func (c *Client) openUDP() (*udpClient, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.To))
	if err != nil {
		return nil, err
	}
	return &udpClient{conn: conn, session: rand.Uint64(), in: make([]byte, 64<<10)}, nil
}

func (u *udpClient) Close() error { return u.conn.Close() }

func (u *udpClient) message(kind byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{kind}, u.session)
	return append(b, payload...)
}

// ask sends a question and returns its answer's payload.
func (u *udpClient) ask(kind byte, payload []byte) ([]byte, error) {
	if _, err := u.conn.Write(u.message(kind, payload)); err != nil {
		return nil, err
	}
	return u.answer(kind)
}

// answer waits for an answer of a kind, past late answers of another.
func (u *udpClient) answer(kind byte) ([]byte, error) {
	u.conn.SetReadDeadline(time.Now().Add(answerTimeout))
	for {
		n, err := u.conn.Read(u.in)
		if err != nil {
			return nil, timeout(err)
		}
		if n >= udpHeaderBytes && u.in[0] == kind && binary.BigEndian.Uint64(u.in[1:]) == u.session {
			return u.in[udpHeaderBytes:n], nil
		}
	}
}

func (u *udpClient) echo(i uint64, size int) error {
	payload := make([]byte, max(size-udpHeaderBytes, 8))
	binary.BigEndian.PutUint64(payload, i)
	got, err := u.ask('e', payload)
	for err == nil && len(got) >= 8 && binary.BigEndian.Uint64(got) < i {
		got, err = u.answer('e') // a late answer to an earlier message
	}
	if err == nil && !bytes.Equal(got, payload) {
		return errors.New("what came back is not what was sent")
	}
	return err
}

func timeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return errTimeout
	}
	return err
}

func resize(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// randomBytes do not compress and do not repeat within n.
func randomBytes(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, rand.Uint64())
	}
	return b[:n]
}
