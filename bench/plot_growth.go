package bench

import (
	"slices"
	"strconv"
)

// growths are what is drawn against the size of a cluster.
var growths = []struct{ metric, title string }{
	{"sync", "Full synchronisation, s"},
	{"memory", "Resident memory at its peak, MB"},
	{"cpu", "CPU at 20 changes a second, % of a core"},
	{"p99", "Latency of a change, p99, ms"},
}

// growth draws what joining a cluster costs against its nodes: a panel for each figure,
// a line for each topology, both axes logarithmic. Nil: it was not measured at two sizes.
func (r *Result) growth() []byte {
	var runs []*Row
	nodes := map[int]bool{}
	for i := range r.Rows {
		// The rows of other metrics hold the same samples.
		if row := &r.Rows[i]; row.Error == "" && row.Load.Kind == "sync" && row.Metric == "sync" && row.growing() {
			runs = append(runs, row)
			nodes[row.Cluster.Nodes] = true
		}
	}
	if len(nodes) < 2 {
		return nil
	}
	const columns, between, head, foot = 2, 70, 34, 40
	width := (plotWidth-60.0-between*(columns-1))/columns - 90
	title := "What a node takes to know a cluster, by the cluster's nodes"
	s := &svg{width: plotWidth, height: float64(panelTop + (len(growths)+columns-1)/columns*panelPitch)}
	s.text(16, 24, "title", left, title)
	s.text(16, 42, "note", left, r.caption()+"; 30 pods and 2 services for each node")
	var sizes []float64
	for n := range nodes {
		sizes = append(sizes, float64(n))
	}
	for i, g := range growths {
		x, y := 50+float64(i%columns)*(width+90+between), float64(panelTop+i/columns*panelPitch)
		top, bottom := y+head, y+panelPitch-foot
		var values []float64
		for _, row := range runs {
			sp := row.figure(g.metric)
			values = append(values, sp.Min, sp.Max)
		}
		up, across := newLogScale(values, bottom, top), newLogScale(sizes, x, x+width)
		s.text(x, y+20, "", left, g.title)
		for _, t := range up.ticks() {
			s.line(x, up.at(t), x+width, up.at(t), "grid")
			s.text(x-6, up.at(t)+4, "tick num", right, strconv.FormatFloat(t, 'g', -1, 64))
		}
		for _, t := range across.ticks() {
			s.text(across.at(t), bottom+16, "tick num", middle, strconv.FormatFloat(t, 'f', -1, 64))
		}
		for _, line := range []struct {
			topology   Topology
			class      string
			area, name string
		}{{Simulated, "a", "aband", "simulated"}, {Kubernetes, "b", "bband", "real"}} {
			s.grown(runs, line.topology, g.metric, line.class, line.area, line.name, across, up)
		}
	}
	return s.bytes(title)
}

// growing: a service has the pods that there are for it, so that sizes compare.
func (r *Row) growing() bool {
	return r.Cluster.Nodes > 0 && r.Cluster.Behind() == r.Cluster.Pods/r.Cluster.Services && r.Cluster.Pods == 30*r.Cluster.Nodes
}

// figure is the spread of any of a row's figures.
func (r *Row) figure(name string) Spread {
	var values []float64
	for _, sample := range r.Subject.Samples {
		values = append(values, sample.Figures[name])
	}
	return newSpread(values)
}

// grown draws one topology's figures, by size.
func (s *svg) grown(runs []*Row, t Topology, metric, class, area, name string, across, up logScale) {
	var line, upper, lower []point
	for _, row := range slices.SortedFunc(slices.Values(runs), func(a, b *Row) int { return a.Cluster.Nodes - b.Cluster.Nodes }) {
		if row.Topology != t {
			continue
		}
		sp, x := row.figure(metric), across.at(float64(row.Cluster.Nodes))
		line, upper, lower = append(line, point{x, up.at(sp.Median)}), append(upper, point{x, up.at(sp.Max)}), append(lower, point{x, up.at(sp.Min)})
	}
	if len(line) == 0 {
		return
	}
	slices.Reverse(lower)
	s.shape("polygon", area, append(upper, lower...))
	s.shape("polyline", class, line)
	for _, p := range line {
		s.dot(p.x, p.y, class+"fill")
	}
	end := line[len(line)-1]
	s.text(end.x+8, end.y+4, "", left, name)
}
