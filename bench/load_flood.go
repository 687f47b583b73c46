package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// defaultBulkBytes is the payload of a datagram in bulk. It fits the MTU of a
// tunnel over an Ethernet.
const defaultBulkBytes = 1400

// flood sends datagrams as fast as the sender can and takes the rate at which
// they arrive, by the receiver's clock. What is lost on the way is no failure:
// a sender without congestion control always finds the slowest place.
func flood(ctx context.Context, l *Load, n *network, d time.Duration, self string) (measurement, error) {
	rate := l.Kind == "udp-rate"
	size := l.SizeBytes
	if size == 0 {
		size = defaultBulkBytes
		if rate {
			size = defaultMessageBytes
		}
	}
	any := netip.IPv4Unspecified()
	if n.to.Is6() {
		any = netip.IPv6Unspecified()
	}
	server := lab.Command{Name: "sink", Path: self, Args: []string{"sink", "--listen", netip.AddrPortFrom(any, loadPort).String(),
		"--gro=" + strconv.FormatBool(l.USO)}}
	return withServer(ctx, n.endpoints, server, serveReady, func(p *lab.Process) (measurement, error) {
		sent, err := n.load(ctx, self, "flood", "--size", strconv.Itoa(size), "--flows", strconv.Itoa(max(l.Streams, 1)),
			"--duration", d.String(), "--uso="+strconv.FormatBool(l.USO))
		if err != nil {
			return measurement{}, err
		}
		if err := p.Stop(); err != nil {
			return measurement{}, err
		}
		got, err := sinkReport(p.Log())
		if err != nil {
			return measurement{}, err
		}
		return arrived(got.Bulk, sent.Bulk, size, rate)
	})
}

// sinkReport finds the report in what a sink wrote.
func sinkReport(log string) (*traffic.Report, error) {
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		r := &traffic.Report{}
		if err := json.Unmarshal([]byte(line), r); err != nil {
			return nil, fmt.Errorf("the sink reported %q: %w", line, err)
		}
		if r.Bulk == nil {
			return nil, fmt.Errorf("the sink reported nothing in bulk: %q", line)
		}
		return r, nil
	}
	return nil, errors.New("the sink ended without a report")
}

// arrived is the flood as the sink saw it.
func arrived(got, sent *traffic.Bulk, size int, rate bool) (measurement, error) {
	if sent == nil || got.Bytes == 0 || got.Elapsed <= 0 {
		return measurement{}, errors.New("nothing arrived")
	}
	m := measurement{bytes: got.Bytes, figures: map[string]float64{"throughput": got.BitsPerSecond / 1e9}}
	packets := got.Bytes / uint64(size)
	if rate {
		m.figures = map[string]float64{"rate": float64(packets) / got.Elapsed.Seconds() / 1e3}
	}
	m.detail = map[string]uint64{"sent": sent.Sent, "received": packets}
	return m, nil
}

// defaultClients is how many connections are under way at once.
const defaultClients = 8

// connections measures how many connections a second are made, used for one
// byte each way and closed by the server.
func connections(ctx context.Context, l *Load, n *network, d time.Duration, self string) (measurement, error) {
	server := lab.Command{Name: "accept", Path: self, Args: []string{"accept", "--listen", ":" + strconv.Itoa(loadPort)}}
	return withServer(ctx, n.endpoints, server, serveReady, func(*lab.Process) (measurement, error) {
		clients := l.Streams
		if clients == 0 {
			clients = defaultClients
		}
		r, err := n.load(ctx, self, "connections", "--clients", strconv.Itoa(clients), "--duration", d.String())
		if err != nil {
			return measurement{}, err
		}
		if r.Connections == nil || r.RTT == nil {
			return measurement{}, errors.New("the client made no connection")
		}
		return measurement{detail: r, figures: map[string]float64{
			"rate": r.Connections.PerSecond, "p50": float64(r.RTT.P50) / 1e3, "p99": float64(r.RTT.P99) / 1e3}}, nil
	})
}
