package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// defaultMessageBytes is the payload of a round trip and of a small packet.
const defaultMessageBytes = 64

var sockperfReady = regexp.MustCompile(`\[SERVER\] listen on`)

// sockperf measures round trips over UDP, one at a time, between two C programs
// that block in their system calls: less of the figure is the program's than
// with any Go program.
func sockperf(ctx context.Context, l *Load, n *network, d time.Duration, _ string) (measurement, error) {
	// taskset(1) becomes the program it starts.
	command := func(name string, args ...string) lab.Command {
		if l.Pin {
			return lab.Command{Name: name, Path: "taskset", Args: append([]string{"--cpu-list", "0", "sockperf"}, args...)}
		}
		return lab.Command{Name: name, Path: "sockperf", Args: args}
	}
	server := command("sockperf-server", "server", "--ip", "0.0.0.0", "--port", strconv.Itoa(loadPort))
	return withServer(ctx, n.endpoints, server, sockperfReady, func(*lab.Process) (measurement, error) {
		to, size := n.target(), l.SizeBytes
		if size == 0 {
			size = defaultMessageBytes
		}
		out, err := n.client.Exec(ctx, command("sockperf", "ping-pong", "--ip", to.Addr().String(),
			"--port", strconv.Itoa(int(to.Port())), "--time", wholeSeconds(d), "--msg-size", strconv.Itoa(size), "--full-rtt"))
		if err != nil {
			return measurement{}, err
		}
		return parseSockperf(string(out))
	})
}

var (
	sockperfColour     = regexp.MustCompile("\x1b\\[[0-9;]*m")
	sockperfPercentile = regexp.MustCompile(`percentile ([0-9.]+) = +([0-9.]+)`)
	sockperfLost       = regexp.MustCompile(`# dropped messages = (\d+)`)
)

// parseSockperf reads what `sockperf ping-pong --full-rtt` prints; times are in us.
func parseSockperf(out string) (measurement, error) {
	out = sockperfColour.ReplaceAllString(out, "")
	m := measurement{figures: map[string]float64{}}
	for _, f := range sockperfPercentile.FindAllStringSubmatch(out, -1) {
		rank, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return m, fmt.Errorf("sockperf: %w", err)
		}
		us, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return m, fmt.Errorf("sockperf: %w", err)
		}
		m.figures["p"+strconv.FormatFloat(rank, 'f', -1, 64)] = us
	}
	for _, want := range roundTripMetrics {
		if m.figures[want.name] <= 0 {
			return m, fmt.Errorf("sockperf printed no %s: %.300q", want.name, out)
		}
	}
	if f := sockperfLost.FindStringSubmatch(out); f == nil || f[1] != "0" {
		return m, fmt.Errorf("sockperf: %v", f)
	}
	return m, nil
}

// roundTrips measures round trips with our own client and server.
func roundTrips(ctx context.Context, l *Load, n *network, d time.Duration, self string) (measurement, error) {
	server := lab.Command{Name: "serve", Path: self, Args: []string{"serve", "--listen", ":" + strconv.Itoa(loadPort)}}
	return withServer(ctx, n.endpoints, server, serveReady, func(*lab.Process) (measurement, error) {
		r, err := n.load(ctx, self, "rtt", "--protocol", strings.TrimSuffix(l.Kind, "-rtt"),
			"--size", strconv.Itoa(l.SizeBytes), "--duration", d.String(), "--first-contact", "10s")
		if err != nil {
			return measurement{}, err
		}
		if r.RTT == nil {
			return measurement{}, errors.New("the client measured no round trip")
		}
		if r.RTT.Lost > 0 {
			return measurement{}, fmt.Errorf("%d of %d messages were lost", r.RTT.Lost, r.RTT.Lost+r.RTT.Count)
		}
		us := func(d time.Duration) float64 { return float64(d) / 1e3 }
		return measurement{detail: r.RTT, figures: map[string]float64{
			"p50": us(r.RTT.P50), "p90": us(r.RTT.P90), "p99": us(r.RTT.P99), "p99.9": us(r.RTT.P999)}}, nil
	})
}

// load runs our own client to its end.
func (n *network) load(ctx context.Context, self, what string, args ...string) (*traffic.Report, error) {
	out, err := n.client.Exec(ctx, lab.Command{Path: self, Args: append([]string{"load", what, "--to", n.target().String()}, args...)})
	if err != nil {
		return nil, err
	}
	r := &traffic.Report{}
	if err := json.Unmarshal(out, r); err != nil {
		return nil, fmt.Errorf("the client printed no JSON: %w: %.200q", err, out)
	}
	return r, nil
}
