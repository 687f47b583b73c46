package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"vswitch/internal/lab"
)

// Everything that is carried, over every path: case numbers in the names refer
// to the list that docs/testing.md explains.
func TestPaths(t *testing.T) {
	c := newCluster(t)
	t.Run("container to container", c.testLoopback)
	t.Run("ping flood", c.testPingFlood)
	t.Run("hop count", c.testTTL)
	t.Run("iperf3", c.testIperf)
	t.Run("UDP of every size", c.testUDPSizes)
	t.Run("a gibibyte arrives as it was sent", c.testIntegrity)
	t.Run("counters add up", c.testCounters)
	t.Run("curl", c.testCurl)
	t.Run("traceroute shows the router", c.testTimeExceeded)
	t.Run("only expected drops", c.testDropsExpected)
}

func (c *cluster) in(t *testing.T) *cluster { d := *c; d.t = t; return &d }

func (c *cluster) testLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		a := netip.AddrPortFrom(netip.MustParseAddr(addr), 7000)
		listenTCP(t, c.a1.Namespace, a, func(conn net.Conn) { io.Copy(conn, conn) })
		got, err := ask(c.a1.Namespace, "tcp", a, "hello")
		if err != nil || got != "hello" {
			t.Errorf("%v: got %q, %v", a, got, err)
		}
	}
}

// Case 1: a thousand pings each way, none lost, none twice.
func (c *cluster) testPingFlood(t *testing.T) {
	need(t, "ping")
	c.in(t).eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		if err := ping(from, to.IP(family), 1000); err != nil {
			t.Error(err)
		}
		if err := ping(to, from.IP(family), 1000); err != nil {
			t.Error(err)
		}
	})
	for _, own := range []string{"169.254.1.1", "fe80::1%eth0"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if out, err := c.a1.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-c", "3", "-i", "0.01", "-w", "5", own}}); err != nil {
			t.Errorf("ping %s: %v\n%s", own, err, out)
		}
	}
}

// Each switch that forwards takes one hop: one on a node, two across nodes.
func (c *cluster) testTTL(t *testing.T) {
	hops := map[string]int{"same node": 1, "across nodes": 2}
	for name, pair := range c.paths() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for _, family := range []int{4, 6} {
			out, err := pair[0].Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-c", "1", "-w", "5", pair[1].IP(family).String()}})
			if want := fmt.Sprintf("ttl=%d ", 64-hops[name]); err != nil || !contains(out, want) {
				t.Errorf("%s IPv%d: want %q, got %v\n%s", name, family, want, err, out)
			}
		}
	}
}

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// iperfResult is the part of `iperf3 -J` that is judged.
type iperfResult struct {
	Error string
	End   struct {
		SumSent     struct{ Bytes float64 } `json:"sum_sent"`
		SumReceived struct{ Bytes float64 } `json:"sum_received"`
		Sum         struct {
			LostPackets float64 `json:"lost_packets"`
			Packets     float64
		}
	}
}

// iperf runs the real program between two namespaces.
func iperf(t *testing.T, from, to *lab.Namespace, server netip.Addr, args ...string) iperfResult {
	t.Helper()
	need(t, "iperf3")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	srv, err := to.Start(lab.Command{Name: "iperf3 server", Path: "iperf3", Args: []string{"-s", "-1", "--forceflush"}})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Kill()
	if _, err := srv.WaitLog(ctx, listening); err != nil {
		t.Fatal(err)
	}
	out, err := from.Exec(ctx, lab.Command{Path: "iperf3", Args: append([]string{"-c", server.String(), "-J"}, args...)})
	var r iperfResult
	if jerr := json.Unmarshal(out, &r); err != nil || jerr != nil || r.Error != "" {
		t.Fatalf("iperf3 %v: %v %v %s\n%s", args, err, jerr, r.Error, out)
	}
	return r
}

// Case 2, with the program users measure with.
func (c *cluster) testIperf(t *testing.T) {
	c.in(t).eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		for _, streams := range []string{"1", "4", "50"} {
			r := iperf(t, from.Namespace, to.Namespace, to.IP(family), "-n", "64M", "-P", streams)
			// The server stops counting when the client has handed over its last byte.
			if r.End.SumSent.Bytes < 64<<20 || r.End.SumReceived.Bytes < 8<<20 {
				t.Errorf("%s streams: %v bytes sent, %v received", streams, r.End.SumSent.Bytes, r.End.SumReceived.Bytes)
			}
		}
		r := iperf(t, from.Namespace, to.Namespace, to.IP(family), "-u", "-b", "5M", "-t", "1", "-l", "1200")
		if r.End.Sum.Packets == 0 || r.End.Sum.LostPackets > r.End.Sum.Packets/20 {
			t.Errorf("UDP at 5 Mb/s: %v of %v lost", r.End.Sum.LostPackets, r.End.Sum.Packets)
		}
	})
}

// Case 3: datagrams from nothing to the largest, contents compared.
func (c *cluster) testUDPSizes(t *testing.T) {
	c.in(t).eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		addr := netip.AddrPortFrom(to.IP(family), 7001)
		listenUDP(t, to.Namespace, addr, func(_ netip.AddrPort, b []byte) []byte {
			sum := sha256.Sum256(b)
			return sum[:]
		})
		conn, err := dial(from.Namespace, "udp", netip.AddrPort{}, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sizes := []int{0, 1, 17, 18, 512, 1371, 1372, 1400, 1422, 1423, 1500, 4096, 9000, 30000, 65487, 65507}
		if family == 6 {
			sizes = sizes[:len(sizes)-1] // 65,507 is IPv4's: 65,535 less its header
		}
		for range 20 {
			sizes = append(sizes, mrand.IntN(65487))
		}
		for _, n := range sizes {
			payload := make([]byte, n)
			rand.Read(payload)
			want := sha256.Sum256(payload)
			if err := exchange(conn, payload, want[:]); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	})
}

// exchange sends a datagram until the wanted answer comes, three times at most:
// UDP may lose one, but never change it.
func exchange(conn net.Conn, payload, want []byte) error {
	got := make([]byte, 64)
	var err error
	for range 3 {
		if _, err = conn.Write(payload); err != nil {
			continue // the path's MTU was learnt by this
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		var n int
		if n, err = conn.Read(got); err != nil {
			continue
		}
		if string(got[:n]) != string(want) {
			return errors.New("the answer is not the digest of what was sent")
		}
		return nil
	}
	return err
}

// Case 3, TCP.
func (c *cluster) testIntegrity(t *testing.T) {
	const each = 256 << 20 // four paths of a quarter each
	c.in(t).eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		addr := netip.AddrPortFrom(to.IP(family), 7002)
		received := make(chan []byte, 1)
		listenTCP(t, to.Namespace, addr, func(conn net.Conn) {
			h := sha256.New()
			io.Copy(h, conn)
			received <- h.Sum(nil)
		})
		conn, err := dial(from.Namespace, "tcp", netip.AddrPort{}, addr)
		if err != nil {
			t.Fatal(err)
		}
		sent := sha256.New()
		if err := pour(io.MultiWriter(conn, sent), each); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		select {
		case got := <-received:
			if string(got) != string(sent.Sum(nil)) {
				t.Error("what arrived is not what was sent")
			}
		case <-time.After(patience):
			t.Error("the stream did not end")
		}
	})
}

// pour writes n bytes that no two blocks repeat.
func pour(w io.Writer, n int) error {
	src := mrand.NewChaCha8([32]byte{1})
	b := make([]byte, 1<<20)
	for ; n > 0; n -= len(b) {
		src.Read(b)
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// Case 2's counters: what the switch counts is what the pods' kernels count.
func (c *cluster) testCounters(t *testing.T) {
	addr := netip.AddrPortFrom(c.a2.IPv4, 7003)
	const n = 1000
	got := make(chan uint32, n)
	listenUDP(t, c.a2.Namespace, addr, func(_ netip.AddrPort, b []byte) []byte {
		got <- binary.BigEndian.Uint32(b)
		return nil
	})
	conn, err := dial(c.a1.Namespace, "udp", netip.AddrPort{}, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before := flowFrames(t, c.nodes[0], addr)
	for i := range uint32(n) {
		if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
			t.Fatal(err)
		}
		select {
		case v := <-got:
			if v != i {
				t.Fatalf("datagram %d arrived when %d was due", v, i)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("datagram %d did not arrive", i)
		}
	}
	if after := flowFrames(t, c.nodes[0], addr); after-before != n {
		t.Errorf("the flow counts %d frames, want %d", after-before, n)
	}
}

// flowFrames sums the frames of the flows to an address.
func flowFrames(t *testing.T, node *lab.Node, to netip.AddrPort) (n uint64) {
	t.Helper()
	var flows []struct {
		Destination string
		Frames      uint64
	}
	get(t, node, "flows", &flows)
	for _, f := range flows {
		if f.Destination == to.String() {
			n += f.Frames
		}
	}
	return n
}

// curl against an HTTP server.
func (c *cluster) testCurl(t *testing.T) {
	need(t, "curl")
	c.in(t).eachPath(func(t *testing.T, from, to *lab.Pod, family int) {
		body := serveHTTP(t, to, 8000, 1<<20)
		got := curl(t, from.Namespace, netip.AddrPortFrom(to.IP(family), 8000))
		if got != body {
			t.Errorf("%d bytes, not the %d served", len(got), len(body))
		}
	})
}

// serveHTTP serves a file of n random bytes and returns them.
func serveHTTP(t *testing.T, p *lab.Pod, port uint16, n int) string {
	t.Helper()
	dir := t.TempDir()
	content := make([]byte, n)
	rand.Read(content)
	if err := os.WriteFile(dir+"/file", content, 0o644); err != nil {
		t.Fatal(err)
	}
	serveFiles(t, p.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), port), dir)
	return string(content)
}

func curl(t *testing.T, from *lab.Namespace, to netip.AddrPort) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := from.Exec(ctx, lab.Command{Path: "curl", Args: []string{"-sS", "-g", "--fail", "--max-time", "20", "http://" + to.String() + "/file"}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Case 19: a packet that runs out of hops is reported from the router address.
func (c *cluster) testTimeExceeded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, family := range []int{4, 6} {
		out, _ := c.a1.Exec(ctx, lab.Command{Path: "ping", Args: []string{"-n", "-c", "1", "-w", "2", "-t", "1", c.b1.IP(family).String()}})
		if !contains(out, "Time to live exceeded") && !contains(out, "Time exceeded: Hop limit") {
			t.Errorf("IPv%d: ping with one hop says:\n%s", family, out)
		}
	}
}

// expectedDrops are what a healthy network loses: what kernels say to groups
// nobody is in, and what the tests above provoke.
var expectedDrops = map[string]bool{
	"multicast": true, "not-for-us": true, "hop-limit": true, "no-flow": true, "spoofed-nd": false,
	"egress-full": true, "too-big": true, "no-route": true,
}

func (c *cluster) testDropsExpected(t *testing.T) {
	for _, n := range c.nodes {
		for reason, count := range nodeDrops(t, n) {
			if !expectedDrops[reason] {
				t.Errorf("node %s dropped %d frames as %s", n.Host, count, reason)
			}
		}
	}
}
