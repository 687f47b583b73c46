package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	apiv1 "vswitch/control/api/v1"
)

// minWatchInterval keeps a watch from being a load: a full table is tens of
// megabytes of JSON.
const minWatchInterval = 100 * time.Millisecond

// watchedFlow is a row of `get flows`, as far as watching is about it.
type watchedFlow struct {
	Protocol    string `json:"protocol"`
	Source      string `json:"source"`
	Destination string `json:"destination"`
	AnsweredBy  string `json:"answeredBy,omitempty"`
	AnsweredTo  string `json:"answeredTo,omitempty"`
	State       string `json:"state"`
	Frames      uint64 `json:"frames"`
	Bytes       uint64 `json:"bytes"`
	ReplyFrames uint64 `json:"replyFrames"`
	ReplyBytes  uint64 `json:"replyBytes"`
	AgeSeconds  uint32 `json:"ageSeconds"`
	IdleSeconds uint32 `json:"idleSeconds"`
}

// flowChange is one line of a watch.
type flowChange struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // known (as the watch begins), new, changed or ended
	watchedFlow
	BytesPerSecond uint64 `json:"bytesPerSecond"` // both ways, since the last look
}

type flowKey struct{ protocol, source, destination string }

func (f *watchedFlow) key() flowKey { return flowKey{f.Protocol, f.Source, f.Destination} }

// watcher compares each list of flows with the one before.
type watcher struct {
	last map[flowKey]watchedFlow // nil: none yet
	at   time.Time
}

// look gives every flow of a list with what became of it, then those that ended. One that
// is as it was, but older, has no event.
func (w *watcher) look(rows iter.Seq2[[]byte, error], now time.Time) ([]flowChange, error) {
	seen := make(map[flowKey]watchedFlow, len(w.last))
	elapsed := now.Sub(w.at).Seconds()
	var all []flowChange
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		c := flowChange{Time: now}
		if err := json.Unmarshal(row, &c.watchedFlow); err != nil {
			return nil, err
		}
		seen[c.key()] = c.watchedFlow
		old, known := w.last[c.key()]
		known = known && c.AgeSeconds >= old.AgeSeconds && c.Bytes >= old.Bytes && c.ReplyBytes >= old.ReplyBytes
		moved := c.Bytes + c.ReplyBytes
		switch {
		case w.last == nil:
			c.Event, moved = "known", 0
		case !known:
			c.Event = "new"
		case c.Frames != old.Frames || c.ReplyFrames != old.ReplyFrames || c.State != old.State || c.AnsweredBy != old.AnsweredBy:
			c.Event = "changed"
		}
		if known {
			moved -= old.Bytes + old.ReplyBytes
		}
		if elapsed > 0 {
			c.BytesPerSecond = uint64(float64(moved) / elapsed)
		}
		all = append(all, c)
	}
	for key, old := range w.last {
		if _, ok := seen[key]; !ok {
			all = append(all, flowChange{Time: now, Event: "ended", watchedFlow: old})
		}
	}
	w.last, w.at = seen, now
	return all, nil
}

// watchFlows shows flows until ctx ends: as a screen on a terminal, else a line for
// each change.
func watchFlows(ctx context.Context, c *apiv1.Client, out io.Writer, format string, interval time.Duration) error {
	if interval < minWatchInterval {
		return fmt.Errorf("--interval %v: want %v or more", interval, minWatchInterval)
	}
	show := printChanges
	file, isFile := out.(*os.File)
	switch {
	case format == "json":
		show = printChangesJSON
	case format != "table":
		return fmt.Errorf("-o %q: want table or json with --watch", format)
	case isFile && isTerminal(file):
		show = func(w io.Writer, all []flowChange) error { return printScreen(w, all, terminalLines(file)) }
	}
	w := &watcher{}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		all, err := w.look(c.Rows(ctx, "flows"), time.Now())
		if ctx.Err() != nil {
			return nil // the user is done
		}
		if err == nil {
			err = show(out, all)
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func changed(all []flowChange) []flowChange {
	return slices.DeleteFunc(all, func(c flowChange) bool { return c.Event == "" })
}

func printChangesJSON(w io.Writer, all []flowChange) error {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	for _, c := range changed(all) {
		if err := e.Encode(c); err != nil {
			return err
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

func printChanges(w io.Writer, all []flowChange) error {
	var out bytes.Buffer
	for _, c := range changed(all) {
		by := ""
		if c.AnsweredBy != "" {
			by = " by " + c.AnsweredBy
		}
		fmt.Fprintf(&out, "%s %-7s %s %s > %s%s %s, %s out, %s back, %s/s, %d s old\n", c.Time.Format(time.TimeOnly), c.Event,
			c.Protocol, c.Source, c.Destination, by, c.State, size(c.Bytes), size(c.ReplyBytes), size(c.BytesPerSecond), c.AgeSeconds)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// printScreen shows the flows that move most at present, as many as there is room for.
func printScreen(w io.Writer, all []flowChange, lines int) error {
	all = slices.DeleteFunc(all, func(c flowChange) bool { return c.Event == "ended" })
	total := uint64(0)
	for _, c := range all {
		total += c.BytesPerSecond
	}
	slices.SortFunc(all, func(a, b flowChange) int {
		return cmp.Or(cmp.Compare(b.BytesPerSecond, a.BytesPerSecond), cmp.Compare(b.Bytes+b.ReplyBytes, a.Bytes+a.ReplyBytes), cmp.Compare(a.Source, b.Source))
	})
	var out bytes.Buffer
	out.WriteString("\x1b[H\x1b[2J") // home, clear (ECMA-48)
	fmt.Fprintf(&out, "%d flows, %s/s; Ctrl-C ends it\n", len(all), size(total))
	const head = 3 // this line, the titles, and the cursor's
	table := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "PROTOCOL\tSOURCE\tDESTINATION\tANSWERED BY\tSTATE\tOUT\tBACK\tRATE\tAGE")
	for _, c := range all[:min(len(all), max(lines-head, 1))] {
		fmt.Fprintln(table, strings.Join([]string{
			c.Protocol, c.Source, c.Destination, cmp.Or(c.AnsweredBy, "-"), c.State,
			size(c.Bytes), size(c.ReplyBytes), size(c.BytesPerSecond) + "/s", (time.Duration(c.AgeSeconds) * time.Second).String(),
		}, "\t"))
	}
	err := table.Flush()
	_, werr := w.Write(out.Bytes())
	return errors.Join(err, werr)
}

// terminalLines is the height of a terminal; 24 where it doesn't say.
func terminalLines(f *os.File) int {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Row == 0 {
		return 24
	}
	return int(ws.Row)
}

// size is a number of bytes for people, in powers of 1,000.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1000, "kB"
	for _, next := range []string{"MB", "GB", "TB", "PB"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, next
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
