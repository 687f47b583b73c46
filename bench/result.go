package bench

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
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
	// Ratio of subject to baseline, pair by pair.
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
	Value           float64 `json:"value"`
	CPUSeconds      float64 `json:"cpuSeconds"`
	CPUSecondsPerGB float64 `json:"cpuSecondsPerGB,omitempty"`
	Detail          any     `json:"detail,omitempty"`
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

// summarize computes all that follows from the samples.
func (r *Row) summarize() {
	var ratios []float64
	for i := range r.Subject.Samples {
		ratios = append(ratios, r.Subject.Samples[i].Value/r.Baseline.Samples[i].Value)
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

// Met reports whether the median ratio is as good as the goal; true without one.
func (r *Row) Met() bool {
	switch {
	case r.Error != "":
		return false
	case r.Goal == 0:
		return true
	case r.HigherIsBetter:
		return r.Ratio.Median >= r.Goal
	}
	return r.Ratio.Median <= r.Goal
}

func (r *Row) format(value float64) string {
	digits := 2
	if math.Abs(value) >= 100 {
		digits = 0
	} else if math.Abs(value) >= 10 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, value, r.Unit)
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

// WriteTable prints the rows in Markdown, which is a table to read as well.
func (r *Result) WriteTable(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d cores; Linux %s; commit %s; %s; %d pairs\n\n", m.CPU, m.Cores, m.Kernel, m.Commit, versions(m.Versions), r.Settings.Pairs)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| row\t| subject\t| baseline\t| ratio, median\t| spread\t| goal\t| CPU s/GB, both\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Error != "" {
			fmt.Fprintf(t, "| %s\t| FAILED\t| \t| \t| \t| \t| \t|\n", row.Name)
			continue
		}
		fmt.Fprintf(t, "| %s\t| %s %s\t| %s %s\t| %.2f\t| %.2f..%.2f\t| %s\t| %s\t|\n", row.Name,
			row.Subject.System, row.format(row.Subject.Value.Median), row.Baseline.System, row.format(row.Baseline.Value.Median),
			row.Ratio.Median, row.Ratio.Min, row.Ratio.Max, row.goal(), row.cpu())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range r.Rows {
		if row.Error != "" {
			fmt.Fprintf(w, "\n%s failed: %s\n", row.Name, row.Error)
		}
		if len(row.Subject.Drops) > 0 {
			fmt.Fprintf(w, "\n%s: %s dropped %v\n", row.Name, row.Subject.System, row.Subject.Drops)
		}
	}
	return nil
}

func (r *Row) goal() string {
	if r.Goal == 0 {
		return "-"
	}
	sign, verdict := ">=", "missed"
	if !r.HigherIsBetter {
		sign = "<="
	}
	if r.Met() {
		verdict = "met"
	}
	return fmt.Sprintf("%s %g, %s", sign, r.Goal, verdict)
}

func (r *Row) cpu() string {
	if r.Subject.CPUSecondsPerGB == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f, %.2f", r.Subject.CPUSecondsPerGB, r.Baseline.CPUSecondsPerGB)
}

func versions(v map[string]string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		words = append(words, name+" "+v[name])
	}
	return strings.Join(words, ", ")
}
