package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Result is a whole run, as written to the JSON file.
type Result struct {
	Machine  Machine  `json:"machine"`
	Settings Settings `json:"settings"`
	Rows     []Row    `json:"rows"`
}

// Settings are what the user chose.
type Settings struct {
	Pairs    int      `json:"pairs"`
	Duration Duration `json:"duration,omitempty"` // instead of the scenarios' own
	Nodes    int      `json:"nodes,omitempty"`    // likewise
	Only     string   `json:"only,omitempty"`
	File     string   `json:"file,omitempty"`
}

// Row is a scenario, measured.
type Row struct {
	Scenario
	Unit           string `json:"unit"`
	HigherIsBetter bool   `json:"higherIsBetter"`
	Subject        Side   `json:"measuredSubject"`
	Baseline       Side   `json:"measuredBaseline"`
	// Ratio of subject to baseline, pair by pair; zero without a baseline.
	Ratio Spread `json:"ratio"`
	// Error is why there is no result; empty if there is one.
	Error string `json:"error,omitempty"`
}

// Side is what was measured of one system.
type Side struct {
	System  string   `json:"system"`
	Samples []Sample `json:"samples,omitempty"`
	Value   Spread   `json:"value"`
	// CPUSecondsPerGB is the median over the samples; 0 where no bytes are counted.
	CPUSecondsPerGB float64 `json:"cpuSecondsPerGB,omitempty"`
	// Drops by reason during this row, if the system counts them.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// Sample is one run. CPU time is the whole machine's, the load's included.
type Sample struct {
	// Value is the row's metric; Figures are all the load has, by name.
	Value           float64            `json:"value"`
	Figures         map[string]float64 `json:"figures,omitempty"`
	CPUSeconds      float64            `json:"cpuSeconds"`
	CPUSecondsPerGB float64            `json:"cpuSecondsPerGB,omitempty"`
	Detail          any                `json:"detail,omitempty"`
}

// Spread is a median and the range around it.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newSpread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	median := s[mid]
	if len(s)%2 == 0 {
		median = (s[mid-1] + s[mid]) / 2
	}
	return Spread{Median: median, Min: s[0], Max: s[len(s)-1]}
}

// summarize computes all that follows from the samples. A ratio to nothing is a failure,
// and no number that JSON has.
func (r *Row) summarize() {
	var ratios []float64
	for i := range r.Subject.Samples {
		if !r.compared() {
			break
		}
		of := r.Baseline.Samples[i].Value
		if of == 0 {
			r.Error = fmt.Sprintf("%s, pair %d: %s, which nothing compares with", r.Baseline.System, i+1, r.format(0))
			return
		}
		ratios = append(ratios, r.Subject.Samples[i].Value/of)
	}
	r.Ratio = newSpread(ratios)
	for _, side := range []*Side{&r.Subject, &r.Baseline} {
		var values, cpu []float64
		for _, s := range side.Samples {
			values, cpu = append(values, s.Value), append(cpu, s.CPUSecondsPerGB)
		}
		side.Value, side.CPUSecondsPerGB = newSpread(values), newSpread(cpu).Median
	}
}

// also is the row of another metric of the same measurements.
func (r *Row) also(a Also) Row {
	o := *r
	o.Name, o.Metric, o.Goal, o.Also = a.Name, a.Metric, a.Goal, nil
	if m, err := r.Load.metric(a.Metric); err == nil {
		o.Unit, o.HigherIsBetter = m.unit, m.higherIsBetter
	}
	for _, side := range []*Side{&o.Subject, &o.Baseline} {
		side.Samples = slices.Clone(side.Samples)
		for i := range side.Samples {
			side.Samples[i].Value = side.Samples[i].Figures[a.Metric]
		}
	}
	if o.Error == "" {
		o.summarize()
	}
	return o
}

// judged is what the goal is about: the ratio, or the figure itself where there
// is no baseline.
func (r *Row) judged() Spread {
	if r.compared() {
		return r.Ratio
	}
	return r.Subject.Value
}

// Met reports whether the median is as good as the goal; true without one.
func (r *Row) Met() bool {
	switch {
	case r.Error != "":
		return false
	case r.Goal == 0:
		return true
	case r.HigherIsBetter:
		return r.judged().Median >= r.Goal
	}
	return r.judged().Median <= r.Goal
}

// Failed counts the rows without a result.
func (r *Result) Failed() int {
	n := 0
	for _, row := range r.Rows {
		if row.Error != "" {
			n++
		}
	}
	return n
}

func versions(v map[string]string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		words = append(words, name+" "+v[name])
	}
	return strings.Join(words, ", ")
}
