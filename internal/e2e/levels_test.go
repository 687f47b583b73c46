package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A process is level when it holds no more after a long time than after a short one.
// What it holds goes up and down by itself, so that the middle of the first third of
// what was seen, warm-up left out, is compared with the middle of the last.

// warmUp is how long a process may grow: sockets of UDP sessions stay for half a minute,
// heaps get their size.
const warmUp = 35 * time.Second

// rise is by how much each may be higher at the end, however long it took: so the
// longer the run, the smaller the leak that is found. Descriptors and goroutines come
// and go with connections of pods. Private memory fills what the collector allows the heap,
// twice of what is live, over many minutes: a leak shows in what is live.
var rise = map[string]float64{"descriptors": 12, "TAP queues": 4, "goroutines": 12, "threads": 6, "private MiB": 8, "live heap MiB": 2}

// holding is what a process holds at one moment, by what it is.
type holding map[string]float64

// levels are what one process was seen to hold.
type levels struct {
	name  string
	begin time.Time // of the process
	seen  map[string][]float64
}

func (l *levels) add(now time.Time, h holding) {
	if now.Sub(l.begin) < warmUp {
		return
	}
	for what, n := range h {
		l.seen[what] = append(l.seen[what], n)
	}
}

// fewest is how many looks allow a verdict.
const fewest = 15

// judged reports whether the process was looked at often enough.
func (l *levels) judged() bool { return len(l.seen["descriptors"]) >= fewest }

// verdict says what rose beyond its bound, and, for the log, all of it.
func (l *levels) verdict() (wrong []string, all string) {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(l.seen)) {
		series := l.seen[what]
		third := len(series) / 3
		first, last := median(series[:third]), median(series[len(series)-third:])
		parts = append(parts, fmt.Sprintf("%s %.4g -> %.4g", what, first, last))
		if last-first > rise[what] {
			wrong = append(wrong, fmt.Sprintf("%s: %s rose from %.4g to %.4g in %d looks, by more than %g", l.name, what, first, last, len(series), rise[what]))
		}
	}
	return wrong, l.name + ": " + strings.Join(parts, ", ")
}

func median(series []float64) float64 {
	s := slices.Clone(series)
	slices.Sort(s)
	return s[len(s)/2]
}

// holdingOf looks at a process from outside. Shared memory is left out: the flow table
// has its size from the start, and pages of it come as they are used.
func holdingOf(pid int) (holding, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	fds, err := os.ReadDir(dir + "/fdinfo")
	if err != nil {
		return nil, err
	}
	h := holding{"descriptors": float64(len(fds)), "TAP queues": 0}
	for _, fd := range fds {
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if err == nil && strings.Contains(string(info), "\niff:\t") { // drivers/net/tun.c, tun_chr_show_fdinfo
			h["TAP queues"]++
		}
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseFloat(fields[1], 64)
		switch {
		case err != nil:
		case fields[0] == "RssAnon:":
			h["private MiB"] = n / 1024
		case fields[0] == "Threads:":
			h["threads"] = n
		}
	}
	if h["private MiB"] == 0 {
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	return h, nil
}

func TestLevels(t *testing.T) {
	for _, tt := range []struct {
		name string
		each func(i int) float64 // descriptors at look i of 90
		want bool                // level
	}{
		{"level", func(int) float64 { return 40 }, true},
		{"up and down", func(i int) float64 { return 40 + 30*float64(i%2) }, true},
		{"a burst", func(i int) float64 { return map[bool]float64{true: 500, false: 40}[i > 70 && i < 80] }, true},
		{"one lost each four looks", func(i int) float64 { return 40 + float64(i)/4 }, false},
		{"two lost in all", func(i int) float64 { return 40 + float64(i)/45 }, true},
		{"a step that stays", func(i int) float64 { return 40 + 20*float64(i/45) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin := time.Unix(0, 0)
			l := &levels{name: "x", begin: begin, seen: map[string][]float64{}}
			l.add(begin.Add(warmUp-1), holding{"descriptors": 1}) // not counted
			for i := range 90 {
				if l.judged() != (i >= fewest) {
					t.Fatalf("judged after %d looks: %v", i, l.judged())
				}
				l.add(begin.Add(warmUp+time.Duration(i)*time.Second), holding{"descriptors": tt.each(i)})
			}
			if wrong, all := l.verdict(); (len(wrong) == 0) != tt.want {
				t.Errorf("%v (%s), want level: %v", wrong, all, tt.want)
			}
		})
	}
}

func TestHoldingOfThisProcess(t *testing.T) {
	first, err := os.Open(os.DevNull) // which opens the runtime's poller as well
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	before, err := holdingOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var open []*os.File
	for range 20 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		open = append(open, f)
	}
	after, err := holdingOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got := after["descriptors"] - before["descriptors"]; got != float64(len(open)) || after["private MiB"] < 1 || after["threads"] < 1 {
		t.Errorf("%d files more: %v, before %v", len(open), after, before)
	}
}
