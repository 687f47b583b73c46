package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// idle measures what the daemon uses while nothing happens, the store's process apart.
func idle(ctx context.Context, _ *Load, n *network, d time.Duration, _ string) (measurement, error) {
	keeper := n.node.Daemon().Pid()
	dataplane, err := n.node.Dataplane()
	if err != nil {
		return measurement{}, err
	}
	store, err := childrenOf(keeper)
	if err != nil {
		return measurement{}, err
	}
	if store = slices.DeleteFunc(store, func(pid int) bool { return pid == dataplane }); len(store) == 0 {
		return measurement{}, fmt.Errorf("daemon %d has no child but the dataplane, want an embedded store", keeper)
	}
	sides := []struct {
		prefix string
		pids   []int
	}{{"", []int{keeper, dataplane}}, {"store-", store}}
	used := func() (cpu [2]time.Duration, err error) {
		for i, s := range sides {
			for _, pid := range s.pids {
				t, err := runTime(pid)
				if err != nil {
					return cpu, err
				}
				cpu[i] += t
			}
		}
		return cpu, nil
	}
	begin := time.Now()
	before, err := used()
	if err != nil {
		return measurement{}, err
	}
	select { // the measurement is of time passing
	case <-time.After(d):
	case <-ctx.Done():
		return measurement{}, context.Cause(ctx)
	}
	after, err := used()
	if err != nil {
		return measurement{}, err
	}
	elapsed := time.Since(begin)
	m := measurement{figures: map[string]float64{}}
	for i, s := range sides {
		m.figures[s.prefix+"cpu"] = 100 * (after[i] - before[i]).Seconds() / elapsed.Seconds()
		resident := uint64(0)
		for _, pid := range s.pids {
			r, err := residentBytes(pid)
			if err != nil {
				return measurement{}, err
			}
			resident += r
		}
		m.figures[s.prefix+"memory"] = float64(resident) / 1e6
	}
	return m, nil
}

// runTime is the CPU time of a process's threads, in nanoseconds of the
// scheduler rather than in ticks (Documentation/scheduler/sched-stats.rst).
func runTime(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, errors.Join(err, fmt.Errorf("process %d: no thread, or a kernel without CONFIG_SCHED_INFO", pid))
	}
	sum := time.Duration(0)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// residentBytes is what of a process is in memory, what it shares included.
func residentBytes(pid int) (uint64, error) { return statusBytes(pid, "VmRSS") }

// statusBytes is one of the amounts of memory that /proc/PID/status tells (proc(5)).
func statusBytes(pid int, name string) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	f := regexp.MustCompile(`(?m)^` + name + `:\s*(\d+) kB$`).FindSubmatch(b)
	if f == nil {
		return 0, fmt.Errorf("process %d has no %s", pid, name)
	}
	kB, err := strconv.ParseUint(string(f[1]), 10, 64)
	return kB << 10, err
}

// childrenOf are the processes a process has started and that still run.
func childrenOf(parent int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // ended since
		}
		pid, ppid, err := parseStat(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		if ppid == parent {
			found = append(found, pid)
		}
	}
	return found, nil
}

// parseStat reads the process and its parent from /proc/PID/stat (proc(5)). The
// program's name in between is in brackets and may hold anything, brackets too.
func parseStat(stat string) (pid, ppid int, err error) {
	open, last := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || last < open {
		return 0, 0, fmt.Errorf("%q has no program's name", stat)
	}
	var state string
	if _, err := fmt.Sscan(stat[:open], &pid); err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(stat[last+1:], &state, &ppid)
	return pid, ppid, err
}

// benchmark runs a benchmark of the system's package, in a process of its own.
func benchmark(ctx context.Context, l *Load, n *network, d time.Duration, _ string) (measurement, error) {
	c := exec.CommandContext(ctx, filepath.Join(n.binDir, path.Base(n.code)+".test"), "-test.run", "^$",
		"-test.bench", benchmarkPattern(l.Benchmark), "-test.benchtime", d.String())
	out, err := c.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		return measurement{}, fmt.Errorf("%w: go test -c -o %s ./%s", err, c.Path, n.code)
	}
	if err != nil {
		return measurement{}, fmt.Errorf("%s: %w: %s", c, err, out)
	}
	return parseBenchmark(string(out), l.Benchmark)
}

// benchmarkPattern matches one benchmark and no other; name is less "Benchmark".
func benchmarkPattern(name string) string {
	parts := strings.Split("Benchmark"+name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// parseBenchmark takes every figure of a benchmark from what `go test` prints, by unit:
//
//	BenchmarkName-2   17216030   66.13 ns/op   15.12 Mlookups/s
func parseBenchmark(out, name string) (measurement, error) {
	line := regexp.MustCompile(`(?m)^Benchmark` + regexp.QuoteMeta(name) + `(?:-\d+)?\s+\d+\s+(.*)$`)
	all := line.FindAllStringSubmatch(out, -1)
	if len(all) != 1 {
		return measurement{}, fmt.Errorf("%d results of benchmark %s: %.500s", len(all), name, out)
	}
	m := measurement{figures: map[string]float64{}, detail: strings.TrimSpace(all[0][0])}
	words := strings.Fields(all[0][1])
	for ; len(words) >= 2; words = words[2:] {
		v, err := strconv.ParseFloat(words[0], 64)
		if err != nil {
			return measurement{}, fmt.Errorf("benchmark %s: %w", name, err)
		}
		m.figures[words[1]] = v
	}
	if len(words) != 0 || len(m.figures) == 0 {
		return measurement{}, fmt.Errorf("benchmark %s: no figures and units: %q", name, all[0][1])
	}
	return m, nil
}
