package demo

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vswitch/internal/traffic"
)

func TestJudgeWantsEveryServerAndTheRightClient(t *testing.T) {
	client, other := netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("10.244.0.1")
	for _, tt := range []struct {
		name    string
		answers []traffic.Answer
		want    string // of the note, or of the error
		fails   bool
	}{
		{
			name:    "both answered and saw the client",
			answers: []traffic.Answer{{Server: "web-b", Client: client, Count: 9}, {Server: "web-a", Client: client, Count: 21}},
			want:    "web-a saw 10.244.0.2, web-b saw 10.244.0.2",
		},
		{
			name:    "one never answered",
			answers: []traffic.Answer{{Server: "web-a", Client: client, Count: 30}},
			want:    "web-b never answered", fails: true,
		},
		{
			name:    "the local one saw somebody else",
			answers: []traffic.Answer{{Server: "web-a", Client: other, Count: 10}, {Server: "web-b", Client: client, Count: 20}},
			want:    "web-a saw 10.244.0.1 as the client", fails: true,
		},
		{
			name:    "a stranger answered",
			answers: []traffic.Answer{{Server: "web-a", Client: client, Count: 10}, {Server: "web-b", Client: client, Count: 10}, {Server: "outside", Client: client, Count: 10}},
			want:    "outside answered", fails: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := row{reaches: []string{"web-a", "web-b"}, seen: map[string]netip.Addr{"web-a": client}}
			note, err := r.judge(&traffic.Report{Answers: tt.answers})
			if (err != nil) != tt.fails {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				note = err.Error()
			}
			if !strings.Contains(note, tt.want) {
				t.Errorf("said %q, want %q", note, tt.want)
			}
		})
	}
}

func TestAddressesInASentence(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	for want, d := range map[string]dual{"192.0.2.11 and 2001:db8::11": {v4, v6}, "192.0.2.11": {v4: v4}, "2001:db8::11": {v6: v6}} {
		if got := fmt.Sprint(d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
