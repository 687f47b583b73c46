package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"vswitch/internal/lab"
)

var iperf3Ready = regexp.MustCompile(`^Server listening`)

// iperf3 measures TCP throughput, as received.
func iperf3(ctx context.Context, l *Load, n *network, d time.Duration, _ string) (measurement, error) {
	server := lab.Command{
		Name: "iperf3-server", Path: "iperf3",
		Args: []string{"--server", "--one-off", "--forceflush", "--port", strconv.Itoa(loadPort)},
	}
	return withServer(ctx, n.endpoints, server, iperf3Ready, func(*lab.Process) (measurement, error) {
		to := n.target()
		out, err := n.client.Exec(ctx, lab.Command{
			Path: "iperf3",
			Args: []string{"--client", to.Addr().String(), "--port", strconv.Itoa(int(to.Port())), "--json",
				"--time", wholeSeconds(d), "--parallel", strconv.Itoa(max(l.Streams, 1))},
		})
		m, parseErr := parseIperf3(out)
		if err != nil && len(out) == 0 {
			return m, err // it could not even start
		}
		return m, parseErr
	})
}

// parseIperf3 reads the output of an iperf3 client with --json.
func parseIperf3(out []byte) (m measurement, err error) {
	var j struct {
		Error string `json:"error"`
		End   struct {
			Sent struct {
				Retransmits *uint64 `json:"retransmits"`
			} `json:"sum_sent"`
			Received struct {
				Bytes         uint64  `json:"bytes"`
				Seconds       float64 `json:"seconds"`
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return m, fmt.Errorf("iperf3 printed no JSON: %w: %.200q", err, out)
	}
	if j.Error != "" {
		return m, fmt.Errorf("iperf3: %s", j.Error)
	}
	r := j.End.Received
	if r.Bytes == 0 || r.BitsPerSecond <= 0 {
		return m, errors.New("iperf3: nothing was received")
	}
	m = measurement{figures: map[string]float64{"throughput": r.BitsPerSecond / 1e9}, bytes: r.Bytes}
	if j.End.Sent.Retransmits != nil {
		m.detail = map[string]uint64{"retransmits": *j.End.Sent.Retransmits}
	}
	return m, nil
}
