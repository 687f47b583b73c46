// Package bench compares pod networks on one machine, in one run: each scenario
// is measured alternately on a subject and on a baseline (A B A B ...), and
// reported as the ratio's median with its spread.
//
// A scenario is a topology, a load and a duration; scenarios.yaml has ours and
// users can write their own. A system is a network that offers a topology; a
// load is a program, or a pair of them, that yields one figure. Each of the
// three can grow without the others. A run that fails is a failure, never a zero.
//
// Networks are made by internal/lab. Nothing here is part of the product.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/lab"
)

// Options of a run.
type Options struct {
	// BinDir holds the product's binaries; Self is a program with the commands of
	// internal/traffic.
	BinDir, Self string
	// Pairs measured of each scenario; 0: 5.
	Pairs int
	// Duration of each measurement instead of the scenario's; 0: the scenario's.
	Duration time.Duration
	// Nodes of clusters instead of the scenarios', all else in proportion; 0: the scenarios'.
	Nodes int
	// Progress gets a line for each pair.
	Progress io.Writer
}

// defaultPairs is enough for a median that one disturbance doesn't move.
const defaultPairs = 5

// warmUp is measured and thrown away on each side before the first pair: it
// fills caches and neighbour tables, and proves that the path works.
const warmUp = 500 * time.Millisecond

// Run measures scenarios one after another. A scenario that fails has its Error
// set, and the others are measured all the same; the error says that ctx ended.
func Run(ctx context.Context, scenarios []Scenario, o Options) ([]Row, error) {
	if o.Pairs == 0 {
		o.Pairs = defaultPairs
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	open := &opened{options: o}
	defer open.closeExcept()
	fmt.Fprintf(o.Progress, "%d scenarios, about %v\n", len(scenarios), expected(scenarios, o).Round(10*time.Second))
	var rows []Row
	begin := time.Now()
	for i, s := range scenarios {
		if o.Duration > 0 {
			s.Duration = Duration(o.Duration)
		}
		if o.Nodes > 0 && s.Topology == Kubernetes {
			s.Cluster = s.Cluster.Scaled(o.Nodes)
		}
		fmt.Fprintf(o.Progress, "%s (%d of %d, after %v): %s against %s\n", s.Name, i+1, len(scenarios),
			time.Since(begin).Round(time.Second), s.Subject, s.Baseline)
		row := measure(ctx, open, s, o)
		if err := ctx.Err(); err != nil {
			return rows, context.Cause(ctx)
		}
		if row.Error != "" {
			fmt.Fprintf(o.Progress, "  FAILED: %s\n", row.Error)
		}
		rows = append(rows, row)
		for _, a := range s.Also {
			rows = append(rows, row.also(a))
		}
		// A network stays open for the next scenario if that one uses it.
		if i+1 < len(scenarios) {
			next := scenarios[i+1]
			open.closeExcept(next.network(next.Subject), next.network(next.Baseline))
		}
	}
	return rows, nil
}

// expected is how long the scenarios will take: beside the measurements, a
// server is started for each, and networks are built that the scenario before did
// not use.
func expected(scenarios []Scenario, o Options) time.Duration {
	const perSample, perNetwork = 400 * time.Millisecond, 4 * time.Second
	sum := time.Duration(0)
	var open []networkKey
	for _, s := range scenarios {
		d, sides := time.Duration(s.Duration), time.Duration(2)
		if o.Duration > 0 {
			d = o.Duration
		}
		if !s.compared() {
			sides = 1
		}
		sample := d + perSample
		if s.Load.Kind == "udp-rtt" { // sockperf begins and ends in its own time
			sample += 2 * time.Second
		}
		sample += s.Load.eventTime() + s.Load.aroundTime()
		sum += sides * (warmUp + time.Duration(o.Pairs)*sample)
		used := []networkKey{s.network(s.Subject)}
		if s.compared() {
			used = append(used, s.network(s.Baseline))
		}
		for _, k := range used {
			if !slices.Contains(open, k) {
				sum += perNetwork
			}
		}
		open = used
	}
	return sum
}

// measure runs one scenario.
func measure(ctx context.Context, open *opened, s Scenario, o Options) Row {
	row := Row{Scenario: s}
	if m, err := s.Load.metric(s.Metric); err == nil { // validated
		row.Unit, row.HigherIsBetter = m.unit, m.higherIsBetter
	}
	fail := func(side string, err error) Row {
		row.Error = fmt.Sprintf("%s: %v", side, err)
		return row
	}
	sides, names := []*Side{&row.Subject}, []string{s.Subject}
	loads := []Load{s.Load, s.Load.ofBaseline()}
	if s.compared() {
		sides, names = append(sides, &row.Baseline), append(names, s.Baseline)
	}
	networks, before := make([]*network, len(sides)), make([]map[string]uint64, len(sides))
	for i, name := range names {
		sides[i].System = name
		n, err := open.network(ctx, s.network(name))
		if err != nil {
			return fail(name, err)
		}
		networks[i] = n
		if before[i], err = n.drops(ctx); err != nil {
			return fail(name+", drops", err)
		}
		if _, err := n.sample(ctx, &loads[i], s.Metric, warmUp, o.Self); err != nil {
			return fail(name+", warming up", err)
		}
	}
	for pair := range o.Pairs {
		for i, n := range networks {
			sample, err := n.sample(ctx, &loads[i], s.Metric, time.Duration(s.Duration), o.Self)
			if err == nil {
				err = s.missing(sample.Figures)
			}
			if err != nil {
				return fail(fmt.Sprintf("%s, pair %d", sides[i].System, pair+1), err)
			}
			sides[i].Samples = append(sides[i].Samples, sample)
		}
		a := row.Subject.Samples[pair]
		fmt.Fprintf(o.Progress, "  pair %d of %d: %s %s", pair+1, o.Pairs, row.Subject.System, row.format(a.Value))
		if s.compared() {
			b := row.Baseline.Samples[pair]
			fmt.Fprintf(o.Progress, ", %s %s, ratio %.2f", row.Baseline.System, row.format(b.Value), a.Value/b.Value)
		}
		fmt.Fprintln(o.Progress)
	}
	row.summarize()
	for i, n := range networks {
		after, err := n.drops(ctx)
		if err != nil {
			return fail(sides[i].System+", drops", err)
		}
		sides[i].Drops = increase(before[i], after)
	}
	return row
}

// missing says which figure of the scenario's rows the load has not measured: it would be
// reported as zero, which of a time is the best there is.
func (s *Scenario) missing(figures map[string]float64) error {
	for _, name := range s.metrics() {
		if _, ok := figures[name]; !ok {
			return fmt.Errorf("it measured no %s, but %s", name, strings.Join(slices.Sorted(maps.Keys(figures)), ", "))
		}
	}
	return nil
}

// increase is what was added to each counter; counters that stood still are left out.
func increase(before, after map[string]uint64) map[string]uint64 {
	more := map[string]uint64{}
	for name, n := range after {
		if n > before[name] {
			more[name] = n - before[name]
		}
	}
	return more
}

// opened keeps networks open between scenarios that share them.
type opened struct {
	options  Options
	networks map[networkKey]*network
}

func (o *opened) network(ctx context.Context, k networkKey) (*network, error) {
	if n := o.networks[k]; n != nil {
		return n, nil
	}
	fmt.Fprintf(o.options.Progress, "  building %s\n", k)
	n, err := openNetwork(ctx, k, o.options)
	if err != nil {
		return nil, err
	}
	if o.networks == nil {
		o.networks = map[networkKey]*network{}
	}
	o.networks[k] = n
	return n, nil
}

// closeExcept closes every network but those given.
func (o *opened) closeExcept(keep ...networkKey) {
	for k, n := range o.networks {
		wanted := false
		for _, w := range keep {
			wanted = wanted || k == w
		}
		if wanted {
			continue
		}
		if err := n.close(); err != nil {
			fmt.Fprintf(o.options.Progress, "  closing %s: %v\n", k, err)
		}
		delete(o.networks, k)
	}
}

// network is a system's topology, built.
type network struct {
	lab *lab.Lab // nil where there is nothing but code
	endpoints
	node       *lab.Node   // whose daemon is looked at or restarted, or on which pods are made
	pod        lab.PodSpec // as pods are made
	kubernetes *kubernetes // the cluster that its node is of
	// restless uses CPU without traffic, and so is stopped while others are measured.
	restless *lab.Process
	tcpOnly  bool // the server can't be reached by UDP
	binDir   string
	code     string // the package whose benchmarks are run, where there is no lab
	// drops counts what the system dropped so far, by reason; nil: it doesn't say.
	dropped func(context.Context) (map[string]uint64, error)
}

func (n *network) drops(ctx context.Context) (map[string]uint64, error) {
	if n.dropped == nil {
		return nil, nil
	}
	return n.dropped(ctx)
}

func (n *network) close() error {
	if n.lab == nil {
		return nil
	}
	if n.kubernetes != nil {
		n.kubernetes.close()
	}
	return errors.Join(n.rest(unix.SIGCONT), n.lab.Close())
}

// rest stops a restless system's process, or lets it go on.
func (n *network) rest(s unix.Signal) error {
	if n.restless == nil {
		return nil
	}
	return n.restless.Signal(s)
}

// sample measures once, with the machine's CPU time around it. A figure of zero
// is a failure, but for an idle system, which may well use nothing.
func (n *network) sample(ctx context.Context, l *Load, metric string, d time.Duration, self string) (Sample, error) {
	d += l.eventTime()
	const late = 20 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, d+l.aroundTime()+late, fmt.Errorf("not done %v after its time", late))
	defer cancel()
	if err := n.rest(unix.SIGCONT); err != nil {
		return Sample{}, err
	}
	defer n.rest(unix.SIGSTOP)
	before, err := busyCPU()
	if err != nil {
		return Sample{}, err
	}
	m, err := l.measure(ctx, n, d, self)
	if err != nil {
		return Sample{}, err
	}
	for name, figure := range m.figures {
		if !(figure > 0) && !(figure == 0 && (l.Kind == "idle" || l.Kind == "restart")) {
			return Sample{}, fmt.Errorf("a %s of %v is no measurement", name, figure)
		}
	}
	after, err := busyCPU()
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Value: m.figures[metric], Figures: m.figures, CPUSeconds: (after - before).Seconds(), Detail: m.detail}
	if m.bytes > 0 {
		sample.CPUSecondsPerGB = sample.CPUSeconds / (float64(m.bytes) / 1e9)
	}
	return sample, nil
}
