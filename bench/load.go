package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// Load is what runs between client and server.
type Load struct {
	// Kind is one of loadKinds.
	Kind string `json:"kind"`
	// Streams in parallel; 0: 1.
	Streams int `json:"streams,omitempty"`
	// SizeBytes of a message, where the kind has messages; 0: 64.
	SizeBytes int `json:"size,omitempty"`
}

// measurement is what one run of a load yields.
type measurement struct {
	value  float64 // in the kind's unit
	bytes  uint64  // moved, for throughput
	detail any     // more of what the program said, for the JSON result
}

type loadKind struct {
	unit           string
	higherIsBetter bool
	streams, sizes bool // which of Load's fields mean something
	measure        func(ctx context.Context, l *Load, e endpoints, d time.Duration, self string) (measurement, error)
}

var loadKinds = map[string]loadKind{
	"tcp":     {unit: "Gb/s", higherIsBetter: true, streams: true, measure: iperf3},
	"udp-rtt": {unit: "us", sizes: true, measure: roundTrips},
	"tcp-rtt": {unit: "us", sizes: true, measure: roundTrips},
}

func (l *Load) unit() string         { return loadKinds[l.Kind].unit }
func (l *Load) higherIsBetter() bool { return loadKinds[l.Kind].higherIsBetter }

func (l *Load) validate() error {
	k, ok := loadKinds[l.Kind]
	switch {
	case !ok:
		return fmt.Errorf("load kind %q is none of %s", l.Kind, strings.Join(slices.Sorted(maps.Keys(loadKinds)), ", "))
	case l.Streams < 0 || l.Streams > 128:
		return fmt.Errorf("%d streams are not within 1..128", l.Streams)
	case l.Streams > 1 && !k.streams:
		return fmt.Errorf("load %s has one stream", l.Kind)
	case l.SizeBytes < 0 || l.SizeBytes > 65507:
		return fmt.Errorf("size %d is not within 1..65507", l.SizeBytes)
	case l.SizeBytes > 0 && !k.sizes:
		return fmt.Errorf("load %s has no message size", l.Kind)
	}
	return nil
}

func (l *Load) measure(ctx context.Context, e endpoints, d time.Duration, self string) (measurement, error) {
	return loadKinds[l.Kind].measure(ctx, l, e, d, self)
}

// loadPort is where servers listen; every run starts its own.
const loadPort = 5201

// withServer runs f while a server process runs in the server's namespace. How
// the server ends is of no interest: what counts is what the client saw.
func withServer(ctx context.Context, e endpoints, c lab.Command, ready *regexp.Regexp, f func() (measurement, error)) (measurement, error) {
	p, err := e.server.Start(c)
	if err != nil {
		return measurement{}, err
	}
	defer p.Stop()
	if _, err := p.WaitLog(ctx, ready); err != nil {
		return measurement{}, err
	}
	m, err := f()
	if err != nil {
		if said := p.Tail(5); said != "" {
			err = fmt.Errorf("%w; the server said last: %s", err, said)
		}
	}
	return m, err
}

var iperf3Ready = regexp.MustCompile(`^Server listening`)

// iperf3 measures TCP throughput, as received.
func iperf3(ctx context.Context, l *Load, e endpoints, d time.Duration, _ string) (measurement, error) {
	server := lab.Command{
		Name: "iperf3-server", Path: "iperf3",
		Args: []string{"--server", "--one-off", "--forceflush", "--port", strconv.Itoa(loadPort)},
	}
	return withServer(ctx, e, server, iperf3Ready, func() (measurement, error) {
		out, err := e.client.Exec(ctx, lab.Command{
			Path: "iperf3",
			Args: []string{"--client", e.to.String(), "--port", strconv.Itoa(loadPort), "--json",
				"--time", strconv.FormatFloat(max(d.Seconds(), 1), 'f', 0, 64), "--parallel", strconv.Itoa(max(l.Streams, 1))},
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
	m = measurement{value: r.BitsPerSecond / 1e9, bytes: r.Bytes}
	if j.End.Sent.Retransmits != nil {
		m.detail = map[string]uint64{"retransmits": *j.End.Sent.Retransmits}
	}
	return m, nil
}

var serveReady = regexp.MustCompile("^" + traffic.ReadyLine)

// roundTrips measures the median round trip with our own client and server.
func roundTrips(ctx context.Context, l *Load, e endpoints, d time.Duration, self string) (measurement, error) {
	server := lab.Command{Name: "serve", Path: self, Args: []string{"serve", "--listen", ":" + strconv.Itoa(loadPort)}}
	return withServer(ctx, e, server, serveReady, func() (measurement, error) {
		out, err := e.client.Exec(ctx, lab.Command{Path: self, Args: []string{
			"load", "rtt", "--protocol", strings.TrimSuffix(l.Kind, "-rtt"), "--to", netip.AddrPortFrom(e.to, loadPort).String(),
			"--size", strconv.Itoa(l.SizeBytes), "--duration", d.String(), "--first-contact", "10s",
		}})
		if err != nil {
			return measurement{}, err
		}
		var r traffic.Report
		if err := json.Unmarshal(out, &r); err != nil {
			return measurement{}, fmt.Errorf("the client printed no JSON: %w: %.200q", err, out)
		}
		if r.RTT == nil {
			return measurement{}, errors.New("the client measured no round trip")
		}
		if r.RTT.Lost > 0 {
			return measurement{}, fmt.Errorf("%d of %d messages were lost", r.RTT.Lost, r.RTT.Lost+r.RTT.Count)
		}
		return measurement{value: float64(r.RTT.P50) / 1e3, detail: r.RTT}, nil
	})
}
