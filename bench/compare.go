package bench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Verdict on a row of two runs.
type Verdict string

const (
	// Same: what differs is within the spread.
	Same Verdict = "same"
	// Better and Worse: each run's median lies outside the other's whole range.
	Better Verdict = "better"
	Worse  Verdict = "worse"
	// FailedNow and WorksNow: one of the runs has no result.
	FailedNow Verdict = "fails now"
	WorksNow  Verdict = "works now"
	FailsBoth Verdict = "fails in both"
	// OnlyInA and OnlyInB: one of the runs hasn't got the row.
	OnlyInA Verdict = "only in the first"
	OnlyInB Verdict = "only in the second"
)

// Change is a row in two runs.
type Change struct {
	Name    string
	Verdict Verdict
	// A and B are what the row is judged by: ratios, or figures where the row has
	// no baseline. Zero in a run that hasn't got the row.
	A, B Spread
	// Row is B's, or A's where B hasn't got it.
	Row *Row
	// NewDrops are reasons the subject dropped frames for in B and not in A.
	NewDrops []string
}

// Compare tells what changed from a to b, in b's order, then what b lacks.
func Compare(a, b *Result) []Change {
	var changes []Change
	for i := range b.Rows {
		row := &b.Rows[i]
		c := Change{Name: row.Name, Row: row, B: row.judged()}
		was := a.row(row.Name)
		if was == nil {
			c.Verdict = OnlyInB
		} else {
			c.A = was.judged()
			c.Verdict = verdict(was, row)
			c.NewDrops = newReasons(was, row)
		}
		changes = append(changes, c)
	}
	for i := range a.Rows {
		if row := &a.Rows[i]; b.row(row.Name) == nil {
			changes = append(changes, Change{Name: row.Name, Row: row, A: row.judged(), Verdict: OnlyInA})
		}
	}
	return changes
}

func (r *Result) row(name string) *Row {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Rows[i]
}

// verdict asks for more than medians apart: a median inside the other run's
// range is one of the figures that run might have had.
func verdict(a, b *Row) Verdict {
	switch {
	case a.Error != "" && b.Error != "":
		return FailsBoth
	case b.Error != "":
		return FailedNow
	case a.Error != "":
		return WorksNow
	}
	x, y := a.judged(), b.judged()
	if x.holds(y.Median) || y.holds(x.Median) {
		return Same
	}
	if (y.Median > x.Median) == b.HigherIsBetter {
		return Better
	}
	return Worse
}

// holds reports whether a value lies within the range.
func (s Spread) holds(v float64) bool { return s.Min <= v && v <= s.Max }

func newReasons(a, b *Row) []string {
	var reasons []string
	for reason := range b.Subject.Drops {
		if a.Subject.Drops[reason] == 0 {
			reasons = append(reasons, reason)
		}
	}
	slices.Sort(reasons)
	return reasons
}

// caveats are differences between the runs other than the code, each of which
// alone can move a figure.
func caveats(a, b *Result) []string {
	var found []string
	differ := func(what, x, y string) {
		if x != y {
			found = append(found, fmt.Sprintf("%s: %s, then %s", what, x, y))
		}
	}
	differ("CPU", fmt.Sprintf("%s, %d cores", a.Machine.CPU, a.Machine.Cores), fmt.Sprintf("%s, %d cores", b.Machine.CPU, b.Machine.Cores))
	differ("kernel", a.Machine.Kernel, b.Machine.Kernel)
	differ("Go", a.Machine.Go, b.Machine.Go)
	differ("programs", versions(a.Machine.Versions), versions(b.Machine.Versions))
	differ("length of a measurement", length(a.Settings.Duration), length(b.Settings.Duration))
	for _, r := range []*Result{a, b} {
		if r.Settings.Pairs < 3 {
			found = append(found, fmt.Sprintf("%d pairs, at commit %s: too few to know a spread", r.Settings.Pairs, r.Machine.Commit))
		}
	}
	return found
}

func length(d Duration) string {
	if d == 0 {
		return "the scenarios'"
	}
	return time.Duration(d).String()
}

// WriteComparison prints what changed from a to b and returns how many rows got
// worse or fail now.
func WriteComparison(w io.Writer, a, b *Result) (worse int, err error) {
	fmt.Fprintf(w, "from commit %s (%s) to %s (%s)\n", a.Machine.Commit, a.Machine.Started.Format("2006-01-02 15:04"),
		b.Machine.Commit, b.Machine.Started.Format("2006-01-02 15:04"))
	for _, c := range caveats(a, b) {
		fmt.Fprintf(w, "not only the code differs: %s\n", c)
	}
	fmt.Fprintln(w)
	changes := Compare(a, b)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "row\tbefore\tspread\tnow\tspread\tchange\tverdict\tnew drops")
	count := map[Verdict]int{}
	for _, c := range changes {
		count[c.Verdict]++
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, c.figures(), c.Verdict, drops(c.NewDrops))
	}
	if err := t.Flush(); err != nil {
		return 0, err
	}
	fmt.Fprintf(w, "\n%d better, %d worse, %d the same within their spread", count[Better], count[Worse], count[Same])
	for _, v := range []Verdict{FailedNow, WorksNow, FailsBoth, OnlyInA, OnlyInB} {
		if count[v] > 0 {
			fmt.Fprintf(w, ", %d %s", count[v], v)
		}
	}
	_, err = fmt.Fprintln(w)
	return count[Worse] + count[FailedNow], err
}

// figures are the columns before, spread, now, spread, change.
func (c *Change) figures() string {
	side := func(s Spread) string {
		if s == (Spread{}) {
			return "-\t-"
		}
		if c.Row.compared() {
			return short(s.Median) + "\t" + s.String()
		}
		return c.Row.format(s.Median) + "\t" + s.String()
	}
	change := "-"
	if c.A.Median > 0 && c.B.Median > 0 {
		change = fmt.Sprintf("%+.1f %%", (c.B.Median/c.A.Median-1)*100)
	}
	return side(c.A) + "\t" + side(c.B) + "\t" + change
}

func drops(reasons []string) string {
	if len(reasons) == 0 {
		return ""
	}
	return fmt.Sprint(reasons)
}
