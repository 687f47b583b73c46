package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func flowRow(source string, frames, bytes, age int) string {
	return fmt.Sprintf(`{"protocol":"TCP","source":%q,"destination":"10.96.0.1:80","answeredBy":"10.244.0.3:8080","state":"established",`+
		`"frames":%d,"bytes":%d,"replyFrames":0,"replyBytes":0,"ageSeconds":%d,"idleSeconds":0}`, source, frames, bytes, age)
}

// watching runs `get flows --watch` against lists that come one after the other.
func watching(t *testing.T, lists [][]string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := &fakeDaemon{rows: map[string][]string{}}
	f.asked = func() {
		if len(lists) == 0 {
			cancel()
			return
		}
		f.rows["flows"], lists = lists[0], lists[1:]
	}
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"get", "flows", "--watch", "--interval", "100ms", "--socket", serve(t, f)}, args...))
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

var lists = [][]string{
	{flowRow("10.244.0.2:1", 1, 100, 5), flowRow("10.244.0.2:2", 1, 100, 5)},
	{flowRow("10.244.0.2:1", 3, 5000, 5), flowRow("10.244.0.2:2", 1, 100, 6), flowRow("10.244.0.2:3", 1, 60, 0)},
	{flowRow("10.244.0.2:1", 3, 5000, 6), flowRow("10.244.0.2:3", 1, 60, 1), flowRow("10.244.0.2:2", 1, 60, 0)},
	{flowRow("10.244.0.2:1", 3, 5000, 7), flowRow("10.244.0.2:2", 1, 60, 1)},
}

func TestWatchPrintsWhatChanges(t *testing.T) {
	var got []string
	for line := range strings.Lines(watching(t, lists)) {
		fields := strings.Fields(line)
		got = append(got, fields[1]+" "+fields[3])
		if !strings.Contains(line, " > 10.96.0.1:80 by 10.244.0.3:8080 established, ") {
			t.Errorf("line %q", line)
		}
	}
	// The second flow with source port 2 is another connection: it is younger.
	want := []string{
		"known 10.244.0.2:1", "known 10.244.0.2:2", "changed 10.244.0.2:1", "new 10.244.0.2:3", "new 10.244.0.2:2", "ended 10.244.0.2:3",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatchPrintsJSONLines(t *testing.T) {
	out := watching(t, lists[:2], "-o", "json")
	var changes []flowChange
	for line := range strings.Lines(out) {
		var c flowChange
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		changes = append(changes, c)
	}
	if len(changes) != 4 || changes[2].Event != "changed" || changes[2].Bytes != 5000 || changes[2].BytesPerSecond == 0 || changes[0].BytesPerSecond != 0 {
		t.Errorf("changes %+v", changes)
	}
}

func TestScreenShowsTheBusiest(t *testing.T) {
	w := &watcher{}
	now := time.Now()
	var all []flowChange
	for i, list := range lists[:2] {
		var rows [][]byte
		for _, r := range list {
			rows = append(rows, []byte(r))
		}
		var err error
		if all, err = w.look(rowsOf(rows), now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := printScreen(&out, all, 4); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "3 flows, 5.0 kB/s") || !strings.Contains(lines[2], "10.244.0.2:1 ") || !strings.Contains(lines[2], "4.9 kB/s") {
		t.Errorf("screen:\n%s\nwant the first flow alone, with 4.9 kB/s", out.String())
	}
}

func TestWatchErrors(t *testing.T) {
	socket := serve(t, &fakeDaemon{})
	for want, args := range map[string][]string{
		"want flows":             {"pods", "--watch"},
		"--interval 1ms":         {"flows", "--watch", "--interval", "1ms"},
		"table or json with --w": {"flows", "--watch", "-o", "yaml"},
	} {
		if _, err := run(t, "", append([]string{"get", "--socket", socket}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q in it", args, err, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_500_000: "1.5 MB", 18446744073709551615: "18446.7 PB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
