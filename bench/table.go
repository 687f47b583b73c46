package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// WriteTable prints the rows in Markdown, which is a table to read as well.
func (r *Result) WriteTable(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d cores; Linux %s; commit %s; %s; %d pairs\n\n", m.CPU, m.Cores, m.Kernel, m.Commit, versions(m.Versions), r.Settings.Pairs)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| row\t| subject\t| baseline\t| ratio, median\t| spread\t| goal\t| CPU s/GB, both\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for i := range r.Rows {
		row := &r.Rows[i]
		subject := row.Subject.System + " " + row.format(row.Subject.Value.Median)
		switch {
		case row.Error != "":
			fmt.Fprintf(t, "| %s\t| FAILED\t| \t| \t| \t| \t| \t|\n", row.Name)
		case !row.compared():
			fmt.Fprintf(t, "| %s\t| %s\t| -\t| -\t| %s\t| %s\t| -\t|\n", row.Name, subject, row.Subject.Value, row.goal())
		default:
			fmt.Fprintf(t, "| %s\t| %s\t| %s %s\t| %s\t| %s\t| %s\t| %s\t|\n", row.Name, subject,
				row.Baseline.System, row.format(row.Baseline.Value.Median), short(row.Ratio.Median), row.Ratio, row.goal(), row.cpu())
		}
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

// String is the range, without the median.
func (s Spread) String() string { return short(s.Min) + ".." + short(s.Max) }

func (r *Row) format(value float64) string { return short(value) + " " + r.Unit }

// short is a figure with three digits that count, or, below 1, two decimals.
func short(value float64) string {
	digits := 2
	if math.Abs(value) >= 100 {
		digits = 0
	} else if math.Abs(value) >= 10 {
		digits = 1
	}
	return fmt.Sprintf("%.*f", digits, value)
}

func (r *Row) goal() string {
	if r.Goal == 0 {
		return "-"
	}
	verdict := "missed"
	if r.Met() {
		verdict = "met"
	}
	return fmt.Sprintf("%s %g, %s", r.sign(), r.Goal, verdict)
}

// sign is how the goal bounds the figure.
func (r *Row) sign() string {
	if r.HigherIsBetter {
		return ">="
	}
	return "<="
}

func (r *Row) cpu() string {
	if r.Subject.CPUSecondsPerGB == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f, %.2f", r.Subject.CPUSecondsPerGB, r.Baseline.CPUSecondsPerGB)
}
