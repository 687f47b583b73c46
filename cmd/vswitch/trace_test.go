package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apiv1 "vswitch/control/api/v1"
)

// Trace implements apiv1.NodeServer.
func (f *fakeDaemon) Trace(_ context.Context, r *apiv1.TraceRequest) (*apiv1.TraceReply, error) {
	f.traced = fmt.Sprintf("%s %s %d %s %d", r.GetPod(), r.GetTo(), r.GetPort(), r.GetProtocol(), r.GetSourcePort())
	return &apiv1.TraceReply{
		Steps:   []*apiv1.TraceStep{{Stage: "source", Text: "it sends", Object: "Pod default/a"}, {Stage: "flow", Text: "none is known"}},
		Outcome: &apiv1.TraceOutcome{Verdict: "refused", Text: "refused because of no-endpoint", Node: "n", Reason: "no-endpoint"},
	}, nil
}

func TestTracePrints(t *testing.T) {
	f := &fakeDaemon{}
	socket := serve(t, f)
	out, err := run(t, "", "trace", "--socket", socket, "--from", "a", "--to", "10.96.0.1:80")
	want := "source   it sends  [Pod default/a]\nflow     none is known\noutcome  refused because of no-endpoint\n"
	if err != nil || out != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
	out, err = run(t, "", "trace", "--socket", socket, "--from", "x/a", "--to", "fd00::1", "-o", "json")
	var got traceJSON
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got.Steps) != 2 || got.Outcome.Reason != "no-endpoint" || got.Steps[0].Object != "Pod default/a" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTraceTargets(t *testing.T) {
	f := &fakeDaemon{}
	socket := serve(t, f)
	for want, args := range map[string][]string{
		"default/a 10.96.0.1 80 tcp 0": {"--from", "a", "--to", "10.96.0.1:80"},
		"x/a fd00::1 80 tcp 0":         {"--from", "x/a", "--to", "[fd00::1]:80"},
		"x/a fd00::1 0 icmp 0":         {"--from", "x/a", "--to", "[fd00::1]"},
		"x/a fd00::2 0 icmp 0":         {"--from", "x/a", "--to", "fd00::2"},
		"x/a 10.96.0.1 53 udp 4000":    {"--from", "x/a", "--to", "10.96.0.1:53", "--proto", "udp", "--source-port", "4000"},
	} {
		if _, err := run(t, "", append([]string{"trace", "--socket", socket}, args...)...); err != nil || f.traced != want {
			t.Errorf("%v: %v, asked %q, want %q", args, err, f.traced, want)
		}
	}
	for want, args := range map[string][]string{
		`--from ""`:           {"--to", "10.0.0.1"},
		`--to "": want`:       {"--from", "a"},
		`--to "web:80"`:       {"--from", "a", "--to", "web:80"},
		"want a port for tcp": {"--from", "a", "--to", "10.0.0.1", "--proto", "tcp"},
		"want no port":        {"--from", "a", "--to", "10.0.0.1:1", "--proto", "icmp"},
		`--proto "gre"`:       {"--from", "a", "--to", "10.0.0.1", "--proto", "gre"},
		`-o "xml"`:            {"--from", "a", "--to", "10.0.0.1", "-o", "xml"},
	} {
		if _, err := run(t, "", append([]string{"trace", "--socket", socket}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q in it", args, err, want)
		}
	}
}
