package bench

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Plot is a drawing and the name of its file.
type Plot struct {
	Name, Title string
	SVG         []byte
}

// Plots are the drawings of a run: bars of the ratios, and latency curves. A
// kind without rows is left out.
func (r *Result) Plots() []Plot {
	var plots []Plot
	for _, group := range []struct {
		name, title string
		wants       func(*Row) bool
	}{
		{"ratios", "Throughput and rates: subject over baseline, more is better",
			func(row *Row) bool { return row.HigherIsBetter && !systems[row.Scenario.Baseline].userSpace }},
		// On one axis with these, what is near 1 could not be told apart.
		{"user-space", "The same against other networks in user space, more is better",
			func(row *Row) bool { return row.HigherIsBetter && systems[row.Scenario.Baseline].userSpace }},
		{"times", "Times: subject over baseline, less is better", func(row *Row) bool { return !row.HigherIsBetter }},
	} {
		var rows []*Row
		for i := range r.Rows {
			if row := &r.Rows[i]; row.compared() && group.wants(row) {
				rows = append(rows, row)
			}
		}
		if len(rows) > 0 {
			plots = append(plots, Plot{group.name, group.title, bars(group.title, r.caption(), rows)})
		}
	}
	if b := r.curves(); b != nil {
		plots = append(plots, Plot{"latency", "Latency by percentile", b})
	}
	if b := r.growth(); b != nil {
		plots = append(plots, Plot{"growth", "What a node takes to know a cluster, by the cluster's nodes", b})
	}
	return plots
}

func (r *Result) caption() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, commit %s, %s; median and range of %d pairs", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel,
		r.Machine.Commit, r.Machine.Started.Format("2006-01-02"), r.Settings.Pairs)
}

const (
	plotWidth  = 920
	barTop     = 62
	barPitch   = 26
	barHeight  = 14
	barLeft    = 300 // where the axis begins
	barRight   = 650 // where it ends
	panelPitch = 260
	panelTop   = 60
)

// bars draws a bar from 1 to each ratio, on a logarithmic axis: half is as far
// from 1 as twice.
func bars(title, caption string, rows []*Row) []byte {
	values := []float64{0.5, 2}
	for _, row := range rows {
		values = append(values, row.Ratio.Min, row.Ratio.Max, row.Goal)
	}
	scale := newLogScale(values, barLeft, barRight)
	bottom := float64(barTop + len(rows)*barPitch)
	s := &svg{width: plotWidth, height: bottom + 44}
	s.text(16, 24, "title", left, title)
	s.text(16, 42, "note", left, caption)
	for _, t := range scale.ticks() {
		class := "grid"
		if t == 1 {
			class = "one"
		}
		s.line(scale.at(t), barTop-6, scale.at(t), bottom, class)
		s.text(scale.at(t), bottom+15, "tick num", middle, strconv.FormatFloat(t, 'g', -1, 64))
	}
	for i, row := range rows {
		y := float64(barTop + i*barPitch)
		s.text(barLeft-12, y+barHeight-3, "", right, row.Name)
		if row.Error != "" {
			s.text(scale.at(1)+8, y+barHeight-3, "note", left, "failed")
			continue
		}
		s.box(scale.at(1), scale.at(row.Ratio.Median), y, barHeight, row.class())
		mid := y + barHeight/2
		s.line(scale.at(row.Ratio.Min), mid, scale.at(row.Ratio.Max), mid, "spread")
		for _, end := range []float64{row.Ratio.Min, row.Ratio.Max} {
			s.line(scale.at(end), mid-3, scale.at(end), mid+3, "spread")
		}
		if row.Goal > 0 {
			s.line(scale.at(row.Goal), y-4, scale.at(row.Goal), y+barHeight+4, "goal")
		}
		s.text(barRight+14, y+barHeight-3, "num", left, short(row.Ratio.Median)+"x "+row.Baseline.System)
		s.text(plotWidth-12, y+barHeight-3, "note num", right, row.goal())
	}
	s.text(16, bottom+34, "note", left, "Bar: median ratio. Line across: its range. Dashed: the goal. Green met it, orange missed it, blue has none.")
	return s.bytes(title)
}

func (r *Row) class() string {
	switch {
	case r.Goal == 0:
		return "open"
	case r.Met():
		return "met"
	}
	return "missed"
}

// percentileOf is the percentile that a figure is named for, "p99.9"; false: for none.
func percentileOf(name string) (float64, bool) {
	rest, ok := strings.CutPrefix(name, "p")
	p, err := strconv.ParseFloat(rest, 64)
	return p, ok && err == nil && p > 0 && p < 100
}

// curve is a side's latency: for each percentile the spread over the samples.
type curve struct {
	percentiles []float64
	spreads     []Spread
}

// curve collects p50 to p99.9, which is as far as a sample of a second carries.
func (s *Side) curve() curve {
	values := map[float64][]float64{}
	for _, sample := range s.Samples {
		for name, v := range sample.Figures {
			if p, ok := percentileOf(name); ok && p >= 50 && p <= 99.9 {
				values[p] = append(values[p], v)
			}
		}
	}
	var c curve
	for p := range values {
		c.percentiles = append(c.percentiles, p)
	}
	slices.Sort(c.percentiles)
	for _, p := range c.percentiles {
		c.spreads = append(c.spreads, newSpread(values[p]))
	}
	return c
}

// nines is how far right a percentile is drawn: 90, 99 and 99.9 at equal distances.
func nines(p float64) float64 { return -math.Log10(1 - p/100) }

// curves draws a panel for each scenario of round trips; nil without one.
func (r *Result) curves() []byte {
	var rows []*Row
	seen := map[string]bool{}
	for i := range r.Rows {
		row := &r.Rows[i]
		// The rows of other metrics hold the same samples.
		name := strings.TrimSuffix(row.Name, "/"+row.Metric)
		if row.Error == "" && row.Unit == "us" && row.compared() && !seen[name] && len(row.Subject.curve().percentiles) > 2 {
			seen[name] = true
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	const columns, between = 2, 70
	panelWidth := (plotWidth - 60.0 - between*(columns-1)) / columns
	lines := (len(rows) + columns - 1) / columns
	s := &svg{width: plotWidth, height: float64(panelTop + lines*panelPitch)}
	s.text(16, 24, "title", left, "Latency by percentile, us")
	s.text(16, 42, "note", left, r.caption()+"; shaded: their range")
	for i, row := range rows {
		x := 50 + float64(i%columns)*(panelWidth+between)
		s.panel(row, x, float64(panelTop+i/columns*panelPitch), panelWidth-90)
	}
	return s.bytes("Latency by percentile")
}

// panel draws both sides of a row in a box of a width, and panelPitch high.
func (s *svg) panel(row *Row, x, y, width float64) {
	const head, foot = 34, 40
	sides := []struct {
		side       *Side
		line, area string
	}{{&row.Subject, "a", "aband"}, {&row.Baseline, "b", "bband"}}
	var values []float64
	for _, side := range sides {
		for _, sp := range side.side.curve().spreads {
			values = append(values, sp.Min, sp.Max)
		}
	}
	top, bottom := y+head, y+panelPitch-foot
	scale := newLogScale(values, bottom, top)
	across := func(p float64) float64 {
		return x + width*(nines(p)-nines(50))/(nines(99.9)-nines(50))
	}
	s.text(x, y+20, "", left, strings.TrimSuffix(row.Name, "/"+row.Metric))
	for _, t := range scale.ticks() {
		s.line(x, scale.at(t), x+width, scale.at(t), "grid")
		s.text(x-6, scale.at(t)+4, "tick num", right, strconv.FormatFloat(t, 'g', -1, 64))
	}
	var ends []float64
	for _, side := range sides {
		c := side.side.curve()
		var line, upper, lower []point
		for i, p := range c.percentiles {
			line = append(line, point{across(p), scale.at(c.spreads[i].Median)})
			upper = append(upper, point{across(p), scale.at(c.spreads[i].Max)})
			lower = append(lower, point{across(p), scale.at(c.spreads[i].Min)})
		}
		if len(line) == 0 {
			continue
		}
		slices.Reverse(lower)
		s.shape("polygon", side.area, append(upper, lower...))
		s.shape("polyline", side.line, line)
		for _, p := range line {
			s.dot(p.x, p.y, side.line+"fill")
		}
		end := line[len(line)-1].y + 4
		for _, other := range ends { // two names on one spot can't be read
			if math.Abs(end-other) < 14 {
				end = other + math.Copysign(14, end-other)
			}
		}
		ends = append(ends, end)
		s.text(x+width+8, end, "", left, side.side.System)
	}
	for _, p := range []float64{50, 90, 99, 99.9} {
		s.text(across(p), bottom+16, "tick num", middle, "p"+strconv.FormatFloat(p, 'g', -1, 64))
	}
}
